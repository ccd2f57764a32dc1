// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: processes that share their memory (vfork, clone(CLONE_VM)) have one page table: nothing is copied, each
 * sees what another does to a leaf, and the end of one removes nothing from the others.
 *
 * Checkpoints of both cases: read, shared, child-written, child-exited.
 * --case=clone_vm has child-unmapped before child-exited, and parent-mapped after it.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"

static struct {
	uint64_t *mapped;
	size_t length;
} run;

static void share_and_write(void)
{
	hp_register("child");
	checkpoint("shared");
	ktap_value("child-write-faults", "%ld", hp_write_faults(run.mapped, 1));
	checkpoint("child-written");
}

static _Noreturn void vforked_main(void)
{
	share_and_write();
	_exit(0);
}

static int cloned_main(void *unused)
{
	(void)unused;
	share_and_write();
	if (munmap(run.mapped, run.length))
		hp_die("munmap");
	checkpoint("child-unmapped"); /* still named, so that the host looks */
	_exit(0);
}

static pid_t start_vforked(void)
{
	pid_t pid = vfork();

	if (pid < 0)
		hp_die("vfork");
	if (!pid)
		vforked_main();
	return pid;
}

static pid_t start_cloned(void)
{
	return hp_clone_vm(0, cloned_main, NULL);
}

static const struct sharing {
	const char *name;
	pid_t (*start)(void);
	bool unmaps; /* the child, from both */
} cases[] = { { "vfork", start_vforked, false }, { "clone_vm", start_cloned, true } };

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct sharing *chosen = hp_choose(&options, "case", "vfork", cases);
	struct hp_bar bar = hp_bar_open(2);
	pid_t child;

	ktap_plan(1);
	run.mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	run.length = options.level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(options.level);
	hp_read(run.mapped);
	ktap_value("tables-before", "%ld", hp_page_table_kib(0));
	checkpoint("read");

	child = chosen->start();
	ktap_ok(hp_reap(child) == 0, "the child wrote and exited");
	ktap_value("tables-after", "%ld", hp_page_table_kib(0));
	checkpoint("child-exited");
	if (chosen->unmaps) {
		if (mmap(run.mapped, run.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, bar.device_fd,
			 (off_t)bar.offset) != run.mapped)
			hp_die("mmap");
		hp_read(run.mapped);
		checkpoint("parent-mapped");
	}
	return ktap_finish();
}
