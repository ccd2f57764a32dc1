// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: whatever was done to a mapping before fork(), the child gets the rights of the VMA, for the same pages,
 * and the parent's entries stay as they are.
 *
 * One case per run, --case=NAME; the comment of each lists its checkpoints. The parts of a mapping are "low" and
 * "high".
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define MANY 12
#define RW (PROT_READ | PROT_WRITE)

static struct hp_bar bar;
static char *mapped;
static size_t length, low_bytes;
static struct hp_gate go, done;

static void protect(const char *name, char *start, size_t bytes, int prot)
{
	if (mprotect(start, bytes, prot))
		hp_die("mprotect");
	hp_bar_name(name, start, bytes, prot, (uint64_t)(start - mapped));
}

/* From now on the mapping is two, "low" and "high". */
static void halve(int low_prot)
{
	hp_unmap("bar");
	hp_bar_name("low", mapped, low_bytes, low_prot, 0);
	hp_bar_name("high", mapped + low_bytes, length - low_bytes, RW, low_bytes);
}

static void value_of_try(const char *name, struct hp_caught caught)
{
	ktap_value(name, "%s %d", hp_signal_name(caught.signal), caught.code);
}

static void reap(pid_t child)
{
	ktap_ok(hp_reap(child) == 0, "the child did its part");
}

/* forked, written (all of them), exited */
static void many(void)
{
	struct hp_gate gates[MANY];
	pid_t children[MANY];
	char name[32];

	hp_write(mapped, 1);
	checkpoint("written-first");
	ktap_value("tables-before", "%ld", hp_page_table_kib(0));
	for (int i = 0; i < MANY; i++) {
		hp_gate_init(&gates[i]);
		snprintf(name, sizeof(name), "child-%d", i);
		children[i] = hp_fork(name);
		if (!children[i]) {
			hp_gate_wait(&gates[i]);
			snprintf(name, sizeof(name), "faults-%d", i);
			ktap_value(name, "%ld", hp_write_faults(mapped, 2));
			hp_gate_open(&done);
			hp_gate_wait(&gates[i]);
			_exit(0);
		}
	}
	checkpoint("forked");
	for (int i = 0; i < MANY; i++) {
		hp_gate_open(&gates[i]);
		hp_gate_wait(&done);
	}
	checkpoint("written");
	for (int i = 0; i < MANY; i++) {
		hp_gate_open(&gates[i]);
		reap(children[i]);
	}
	ktap_value("tables-after", "%ld", hp_page_table_kib(0));
	checkpoint("exited");
}

/* forked, child-read, parent-read */
static void untouched(void)
{
	pid_t child = hp_fork("child");

	if (!child) {
		checkpoint("forked");
		hp_read(mapped);
		checkpoint("child-read");
		_exit(0);
	}
	reap(child);
	hp_read(mapped);
	checkpoint("parent-read");
}

/* read, forked, child-written, parent-written */
static void child_first(void)
{
	pid_t child;

	hp_read(mapped);
	checkpoint("read");
	child = hp_fork("child");
	if (!child) {
		checkpoint("forked");
		ktap_value("child-write-faults", "%ld", hp_write_faults(mapped, 1));
		checkpoint("child-written");
		hp_gate_open(&done);
		hp_gate_wait(&go);
		_exit(0);
	}
	hp_gate_wait(&done);
	ktap_value("parent-write-faults", "%ld", hp_write_faults(mapped, 1));
	checkpoint("parent-written");
	hp_gate_open(&go);
	reap(child);
}

/* forked (parent, child and grandchild), child-exited, grandchild-written */
static void parent_exits(void)
{
	pid_t child, grandchild;

	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		hp_die("PR_SET_CHILD_SUBREAPER");
	hp_write(mapped, 1);
	child = hp_fork("child");
	if (!child) {
		grandchild = hp_fork("grandchild");
		if (!grandchild) {
			checkpoint("forked");
			hp_gate_open(&done);
			hp_gate_wait(&go);
			ktap_value("adopted", "%d", getppid());
			checkpoint("child-exited");
			ktap_value("grandchild-write-faults", "%ld", hp_write_faults(mapped, 1));
			checkpoint("grandchild-written");
			_exit(0);
		}
		hp_gate_wait(&done);
		_exit(0);
	}
	reap(child);
	ktap_value("parent", "%d", getpid());
	hp_gate_open(&go);
	ktap_ok(wait(NULL) > 0, "the grandchild was reparented");
}

/* readonly, forked, tried; with BACK also: child-writable, child-written, parent-writable */
static void protected(bool back)
{
	pid_t child;

	hp_write(mapped, 1);
	protect("bar", mapped, length, PROT_READ);
	checkpoint("readonly");
	child = hp_fork("child");
	if (!child) {
		checkpoint("forked");
		if (back) {
			protect("bar", mapped, length, RW);
			checkpoint("child-writable");
			ktap_value("child-write-faults", "%ld", hp_write_faults(mapped, 2));
			checkpoint("child-written");
		} else {
			value_of_try("child-write", hp_try_write(mapped, 2));
			value_of_try("child-read", hp_try_read(mapped, NULL));
			checkpoint("tried");
		}
		hp_gate_open(&done);
		hp_gate_wait(&go);
		_exit(0);
	}
	hp_gate_wait(&done);
	if (back) {
		protect("bar", mapped, length, RW);
		checkpoint("parent-writable");
	}
	hp_gate_open(&go);
	reap(child);
}

static void readonly(void)
{
	protected(false);
}

static void readonly_writable(void)
{
	protected(true);
}

/* written-first, forked (in the child, which has tried) */
static void dontfork(void)
{
	pid_t child;

	hp_write(mapped, 1);
	if (madvise(mapped, length, MADV_DONTFORK))
		hp_die("MADV_DONTFORK");
	checkpoint("written-first");
	ktap_value("dofork", "%s", hp_errno_name(madvise(mapped, length, MADV_DOFORK) ? errno : 0));
	child = hp_fork("child");
	if (!child) {
		value_of_try("child-read", hp_try_read(mapped, NULL));
		checkpoint("forked"); /* still named, so that the host looks */
		_exit(0);
	}
	reap(child);
}

/* Where the child has no VMA, it may map memory of its own, as malloc() does. */
static void map_own(void)
{
	hp_unmap("low");
	if (mmap(mapped, KIB(4), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != mapped)
		hp_die("mmap of own memory");
	hp_map(&(struct hp_mapping){ .name = "own", .addr = mapped, .length = KIB(4), .prot = RW, .backing = HP_RAM });
	hp_write(mapped, 7);
	ktap_value("own-value", "%llu", (unsigned long long)hp_read(mapped));
	checkpoint("child-mapped");
}

static _Noreturn void child_of_parts(bool low_is_there)
{
	checkpoint("forked"); /* "low" is still named, so that the host looks */
	value_of_try("child-low", hp_try_write(mapped, 2));
	value_of_try("child-high", hp_try_write(mapped + low_bytes, 2));
	checkpoint("child-tried");
	if (!low_is_there)
		map_own();
	_exit(0);
}

/* written-first, parted, touched where AGAIN, forked, child-tried, child-mapped after DONTFORK, parent-tried */
static void parts(int advice, int low_prot, size_t low_length, bool again)
{
	pid_t child;

	low_bytes = low_length;
	for (size_t at = 0; at < length; at += length / 4)
		hp_write(mapped + at, 1);
	checkpoint("written-first");
	if (advice && madvise(mapped, low_length, advice))
		hp_die("madvise");
	if (low_prot != RW && mprotect(mapped, low_length, low_prot))
		hp_die("mprotect");
	halve(low_prot);
	checkpoint("parted");
	if (again) {
		hp_read(mapped);
		hp_write(mapped + low_bytes, 1);
		checkpoint("touched");
	}
	child = hp_fork("child");
	if (!child)
		child_of_parts(advice != MADV_DONTFORK);
	reap(child);
	value_of_try("parent-low", hp_try_write(mapped, 3));
	value_of_try("parent-high", hp_try_write(mapped + low_bytes, 3));
	checkpoint("parent-tried");
}

static void dontfork_part(void)
{
	parts(MADV_DONTFORK, RW, length / 2, false);
}

static void dontfork_page(void)
{
	parts(MADV_DONTFORK, RW, KIB(4), false);
}

static void mprotect_part(void)
{
	parts(0, PROT_READ, length / 2, false);
}

static void mprotect_part_touched(void)
{
	parts(0, PROT_READ, length / 2, true);
}

/* forked */
static void wipeonfork(void)
{
	pid_t child;

	hp_write(mapped, 1);
	checkpoint("written-first");
	ktap_value("wipeonfork", "%s", hp_errno_name(madvise(mapped, length, MADV_WIPEONFORK) ? errno : 0));
	child = hp_fork("child");
	if (!child) {
		checkpoint("forked");
		_exit(0);
	}
	reap(child);
}

/* tried */
static void private(void)
{
	void *other = mmap(NULL, length, RW, MAP_PRIVATE | MAP_NORESERVE, bar.device_fd, (off_t)bar.offset);

	hp_read(mapped);
	ktap_value("map-private", "%s", hp_errno_name(other == MAP_FAILED ? errno : 0));
	checkpoint("tried");
	ktap_ok(other == MAP_FAILED, "a private mapping of the BAR is refused");
}

static const struct forks {
	const char *name;
	void (*run)(void);
	unsigned int points;
} cases[] = {
	{ "many", many, MANY },
	{ "untouched", untouched, 1 },
	{ "child_first", child_first, 1 },
	{ "parent_exits", parent_exits, 2 },
	{ "readonly", readonly, 1 },
	{ "readonly_writable", readonly_writable, 1 },
	{ "dontfork", dontfork, 1 },
	{ "dontfork_part", dontfork_part, 1 },
	{ "dontfork_page", dontfork_page, 1 },
	{ "mprotect_part", mprotect_part, 1 },
	{ "mprotect_part_touched", mprotect_part_touched, 1 },
	{ "wipeonfork", wipeonfork, 1 },
	{ "private", private, 1 },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct forks *chosen = hp_choose(&options, "case", "", cases);

	bar = hp_bar_open(2);
	mapped = hp_bar_map(&bar, options.level, RW);
	length = options.level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(options.level);
	hp_gate_init(&go);
	hp_gate_init(&done);
	ktap_plan(chosen->points);
	chosen->run();
	return ktap_finish();
}
