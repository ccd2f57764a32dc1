// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a fork() that runs out of memory at any of its allocations leaves nothing behind: the parent's leaves are
 * what they were and need no fault, no page table and no PAT reservation is leaked, and the next fork() works.
 *
 * The n-th allocation of a fork() is made to fail (/proc/self/fail-nth, Documentation/fault-injection), for n from 1 on
 * until a fork() makes fewer than n. The program maps a leaf of each level up to --level, "as-pte", "as-pmd" and
 * "as-pud", and the BAR's first pages once more through sysfs, "remapped", where remap_pfn_range() makes the entries
 * and reserves their memory type.
 *
 * Checkpoints: before, failed (after every EVERY-th fork() that failed), after.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define RW (PROT_READ | PROT_WRITE)
#define EVERY 16
#define MOST 2000 /* allocations of one fork() */
#define REMAPPED_BYTES KIB(16)
#define DEBUGFS "/sys/kernel/debug"
#define PAT_LIST DEBUGFS "/x86/pat_memtype_list"

struct touched {
	char *addr;
	size_t length;
};

static struct touched parts[4];
static size_t part_count;
static char pat_before[KIB(16)];

/* --- the kernel's knobs ------------------------------------------------------------------------------------------- */

static void set(const char *path, const char *value)
{
	errno = hp_write_file(path, value);
	if (errno)
		hp_die("write of %s to %s", value, path);
}

static size_t slurp(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;
	ssize_t n;

	if (fd < 0)
		hp_die("%s", path);
	while ((n = read(fd, text + length, size - 1 - length)) > 0)
		length += (size_t)n;
	if (n < 0 || length == size - 1)
		hp_die("read of %s", path);
	close(fd);
	text[length] = 0;
	return length;
}

/* Makes allocations that may sleep and single pages fail as well, without messages in the kernel log. */
static void enable_failures(void)
{
	if (access("/proc/self/fail-nth", F_OK))
		ktap_skip_all("this kernel has no /proc/self/fail-nth: CONFIG_FAULT_INJECTION is not set");
	if (access(DEBUGFS "/x86", F_OK) && mount("debugfs", DEBUGFS, "debugfs", 0, NULL) && errno != EBUSY)
		ktap_skip_all("no debugfs: %s", strerror(errno));
	if (access(DEBUGFS "/failslab", F_OK) || access(DEBUGFS "/fail_page_alloc", F_OK))
		ktap_skip_all("this kernel lacks CONFIG_FAILSLAB, FAIL_PAGE_ALLOC or FAULT_INJECTION_DEBUG_FS");
	set(DEBUGFS "/failslab/ignore-gfp-wait", "N");
	set(DEBUGFS "/failslab/verbose", "0");
	set(DEBUGFS "/fail_page_alloc/ignore-gfp-wait", "N");
	set(DEBUGFS "/fail_page_alloc/ignore-gfp-highmem", "N");
	set(DEBUGFS "/fail_page_alloc/min-order", "0");
	set(DEBUGFS "/fail_page_alloc/verbose", "0");
}

/* --- what is mapped ------------------------------------------------------------------------------------------- */

static void touch_all(void)
{
	for (size_t i = 0; i < part_count; i++)
		for (size_t at = 0; at < parts[i].length; at += parts[i].length / 4) {
			hp_write(parts[i].addr + at, at);
			hp_read(parts[i].addr + at);
		}
}

static void add(char *addr, size_t length)
{
	parts[part_count++] = (struct touched){ addr, length };
}

/* mmap() of sysfs's resource file makes every entry at once, by remap_pfn_range() (pci_mmap_resource_range()). */
static void map_remapped(void)
{
	char path[128], *addr;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource2", getenv("HUGEPFN_VFIO_BDF"));
	fd = open(path, O_RDWR | O_CLOEXEC);
	addr = fd < 0 ? MAP_FAILED : mmap(hp_reserve(MIB(4), MIB(2)), REMAPPED_BYTES, RW, MAP_SHARED, fd, 0);
	if (addr == MAP_FAILED)
		hp_die("mmap of %s", path);
	close(fd);
	hp_bar_name("remapped", addr, REMAPPED_BYTES, RW, 0);
	add(addr, REMAPPED_BYTES);
}

static void map_all(enum hp_level top)
{
	struct hp_bar bar = hp_bar_open(2);
	char name[16];

	for (enum hp_level level = HP_PTE; level <= top; level++) {
		size_t length = level == HP_PTE ? KIB(16) : hp_leaf_size(level);

		snprintf(name, sizeof(name), "as-%s", hp_level_name(level));
		add(hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = name,
								  .length = length,
								  .align = hp_leaf_size(level),
								  .prot = RW }),
		    length);
	}
	map_remapped();
	touch_all();
}

/* --- forks that fail ------------------------------------------------------------------------------------------ */

static long faults(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_SELF, &usage))
		hp_die("getrusage");
	return usage.ru_minflt + usage.ru_majflt;
}

/* fork() with its NTH allocation failing: 0 or the error; HIT tells whether it made so many. */
static int fork_failing(int fd, int nth, bool *hit)
{
	char text[16];
	int length = snprintf(text, sizeof(text), "%d", nth), error, status;
	pid_t child;

	if (pwrite(fd, text, (size_t)length, 0) != length)
		hp_die("fail-nth");
	child = fork();
	error = child < 0 ? errno : 0;
	if (!child)
		_exit(0);
	length = (int)pread(fd, text, sizeof(text) - 1, 0);
	if (length <= 0 || pwrite(fd, "0", 1, 0) != 1)
		hp_die("fail-nth");
	text[length] = 0;
	*hit = strtol(text, NULL, 10) == 0;
	if (!error && (waitpid(child, &status, 0) != child || status))
		hp_die("a child that was forked ended with status %d", status);
	return error;
}

/* What the page tables of all processes take, in KiB. */
static long all_tables_kib(void)
{
	char text[KIB(8)];
	const char *at;

	hp_write_file("/proc/sys/vm/stat_refresh", "1"); /* adds up what each CPU has counted; not every kernel has it */
	slurp("/proc/meminfo", text, sizeof(text));
	at = strstr(text, "PageTables:");
	if (!at)
		hp_die("no PageTables in /proc/meminfo");
	return strtol(at + strlen("PageTables:"), NULL, 10);
}

/* What the forks that failed left: the maximum of FAULTS and of the tables, the number of the others. */
struct left {
	long faults, tables_kib, pat_changes, failed, other_errors, all_tables_kib;
};

static void look(struct left *left, long tables_kib)
{
	static char pat[sizeof(pat_before)];
	long before = faults(), more;

	touch_all();
	more = faults() - before;
	left->faults = more > left->faults ? more : left->faults;
	more = hp_page_table_kib(0) - tables_kib;
	left->tables_kib = labs(more) > labs(left->tables_kib) ? more : left->tables_kib;
	slurp(PAT_LIST, pat, sizeof(pat));
	left->pat_changes += strcmp(pat, pat_before) != 0;
}

static struct left fail_each(void)
{
	int fd = open("/proc/self/fail-nth", O_RDWR | O_CLOEXEC), error;
	struct left left = { 0 };
	long tables_kib = hp_page_table_kib(0), all_before = all_tables_kib();
	bool hit = true;

	if (fd < 0)
		hp_die("/proc/self/fail-nth");
	for (int nth = 1; hit && nth < MOST; nth++) {
		error = fork_failing(fd, nth, &hit);
		if (!error)
			continue;
		left.failed++;
		left.other_errors += error != ENOMEM && error != EAGAIN;
		look(&left, tables_kib);
		if (left.failed % EVERY == 0)
			checkpoint("failed");
	}
	close(fd);
	left.all_tables_kib = all_tables_kib() - all_before;
	if (hit) {
		errno = 0;
		hp_die("fork() makes more than %d allocations", MOST);
	}
	return left;
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct left left;
	bool hit;
	int fd;

	enable_failures();
	map_all(options.level);
	slurp(PAT_LIST, pat_before, sizeof(pat_before));
	ktap_plan(1);
	fd = open("/proc/self/fail-nth", O_RDWR | O_CLOEXEC);
	fork_failing(fd, 0, &hit); /* makes what is allocated only by the first fork() */
	touch_all();
	checkpoint("before");
	left = fail_each();
	checkpoint("after");
	ktap_value("every", "%d", EVERY);
	ktap_value("failed", "%ld", left.failed);
	ktap_value("other-errors", "%ld", left.other_errors);
	ktap_value("faults", "%ld", left.faults);
	ktap_value("tables-kib", "%ld", left.tables_kib);
	ktap_value("all-tables-kib", "%ld", left.all_tables_kib);
	ktap_value("pat-changes", "%ld", left.pat_changes);
	ktap_ok(true, "fork() failed at each of its allocations, and works");
	return ktap_finish();
}
