// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: on every kind of ordinary memory the walk agrees with what the kernel reports about its pages: present,
 * pfn, exclusive, file or shared, soft-dirty, write-protected by userfaultfd, the categories of PAGEMAP_SCAN.
 *
 * --memory=anon|thp|shmem|shmem-thp|hugetlb|hugetlb-private: 16 single pages, or one leaf of 2 MiB; anon-table: a page
 * table of single pages.
 * --case=share: fork, and writes in child and parent.
 *     Checkpoints: filled, forked, child-written (page 0), child-owns (every page), parent-written (page 0), exited.
 * --case=uffd: userfaultfd protects everything, then releases page 3 (on hugetlbfs all of it).
 *     Checkpoints: filled, protected, released, written (page 3).
 * --case=scan: PAGEMAP_SCAN, soft-dirty and asynchronous userfaultfd; of single pages, page 0 is a hole and page 1 the
 *     zero page. Checkpoints: filled, cleaned, protected, rewritten.
 * --case=split: a move, then mprotect of pages 64 to 127, then munmap of pages 256 to 383.
 *     Checkpoints: filled, moved, mprotected, unmapped.
 * --case=tracked: clear_refs 4 and a move to where the whole page table can go along; the same to where it cannot.
 *     Checkpoints: cleared, table-moved, cleared-again, pages-moved.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/tracking.h"

#define PAGES 16

static char *memory;
static size_t length;
static bool hugetlb;

static void *at(size_t page)
{
	return memory + page * KIB(4);
}

static void name_memory(void)
{
	hp_map(&(struct hp_mapping){ .name = "memory",
				     .addr = memory,
				     .length = length,
				     .prot = PROT_READ | PROT_WRITE,
				     .backing = HP_RAM,
				     .pagemap_pages = length / KIB(4) });
}

/* 2 MiB of free addresses with nothing on either side. */
static char *reserve(void)
{
	return (char *)hp_reserve(3 * MIB(2), MIB(2)) + MIB(2);
}

static void must_write(const char *path, const char *text)
{
	int error = hp_write_file(path, text);

	if (error)
		ktap_skip_all("%s: %s", path, strerror(error));
}

static int memory_file(void)
{
	int fd = memfd_create("control", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)length))
		hp_die("memfd");
	return fd;
}

static const struct kind {
	const char *name;
	bool huge, table;
	int flags; /* of mmap(); without MAP_ANONYMOUS: of a file */
} kinds[] = {
	{ "anon", false, false, MAP_PRIVATE | MAP_ANONYMOUS },
	{ "anon-table", false, true, MAP_PRIVATE | MAP_ANONYMOUS },
	{ "thp", true, false, MAP_PRIVATE | MAP_ANONYMOUS },
	{ "shmem", false, false, MAP_SHARED },
	{ "shmem-thp", true, false, MAP_SHARED },
	{ "hugetlb", true, false, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB },
	{ "hugetlb-private", true, false, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB },
};

static void map_memory(const struct kind *kind)
{
	bool file = !(kind->flags & MAP_ANONYMOUS);

	hugetlb = kind->flags & MAP_HUGETLB;
	length = kind->huge || kind->table ? MIB(2) : PAGES * KIB(4);
	if (hugetlb) /* One for the parent, one for a child that copies it. */
		must_write("/proc/sys/vm/nr_hugepages", "2");
	if (file && kind->huge)
		must_write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
	memory = mmap(reserve(), length, PROT_READ | PROT_WRITE, kind->flags | MAP_FIXED, file ? memory_file() : -1, 0);
	if (memory == MAP_FAILED && hugetlb)
		ktap_skip_all("no 2M page for hugetlbfs: %s", strerror(errno));
	if (memory == MAP_FAILED)
		hp_die("mmap");
	if (!hugetlb && madvise(memory, length, kind->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) && kind->huge)
		ktap_skip_all("madvise(MADV_HUGEPAGE): %s (no transparent huge pages in this kernel)", strerror(errno));
	name_memory();
}

static void fill(size_t first, uint64_t value)
{
	for (size_t page = first; page < length / KIB(4); page++)
		hp_write(at(page), value);
}

static _Noreturn void child_main(const struct hp_gate *go)
{
	hp_gate_wait(&go[0]);
	hp_write(at(0), 2);
	checkpoint("child-written");
	fill(0, 3);
	checkpoint("child-owns");
	hp_gate_open(&go[1]);
	hp_gate_wait(&go[0]);
	_exit(*(volatile uint64_t *)at(1) == 3 ? 0 : 1);
}

static void share(void)
{
	struct hp_gate go[2];
	pid_t child;

	ktap_plan(1);
	hp_gate_init(&go[0]);
	hp_gate_init(&go[1]);
	fill(0, 1);
	checkpoint("filled");
	child = hp_fork("child");
	if (!child)
		child_main(go);
	checkpoint("forked");
	hp_gate_open(&go[0]);
	hp_gate_wait(&go[1]);
	hp_write(at(0), 4);
	checkpoint("parent-written");
	ktap_value("page-1", "%lu", (unsigned long)hp_read(at(1)));
	hp_gate_open(&go[0]);
	ktap_ok(hp_reap(child) == 0, "the child kept what it wrote");
	checkpoint("exited");
}

static void uffd(void)
{
	int fd = hp_uffd_open(0), error;

	if (fd < 0)
		ktap_skip_all("userfaultfd: %s", strerror(-fd));
	error = hp_uffd_register(fd, memory, length, UFFDIO_REGISTER_MODE_WP);
	if (error)
		ktap_skip_all("UFFDIO_REGISTER for WP of this memory: %s", strerror(error));
	ktap_plan(1);
	fill(0, 1);
	checkpoint("filled");
	errno = hp_uffd_protect(fd, memory, length, true);
	if (errno)
		hp_die("UFFDIO_WRITEPROTECT");
	checkpoint("protected");
	errno = hugetlb ? hp_uffd_protect(fd, memory, length, false) : hp_uffd_protect(fd, at(3), KIB(4), false);
	if (errno)
		hp_die("UFFDIO_WRITEPROTECT, release");
	checkpoint("released");
	hp_write(at(3), 2);
	checkpoint("written");
	ktap_ok(true, "written to what was released");
}

static void scan(void)
{
	bool huge = length == MIB(2);
	int fd = hp_uffd_open(HP_UFFD_FEATURE_WP_ASYNC | HP_UFFD_FEATURE_WP_UNPOPULATED);

	if (fd < 0)
		ktap_skip_all("userfaultfd with WP_ASYNC: %s", strerror(-fd));
	ktap_plan(1);
	if (!huge)
		hp_read(at(1));
	fill(huge ? 0 : 2, 1);
	checkpoint("filled");
	hp_say_scan("filled", memory, length, 0, HP_PAGE_PRESENT);
	hp_clear_refs(getpid(), "4");
	checkpoint("cleaned");
	hp_say_scan("cleaned", memory, length, 0, HP_PAGE_PRESENT);
	errno = hp_uffd_register(fd, memory, length, UFFDIO_REGISTER_MODE_WP);
	if (errno)
		hp_die("UFFDIO_REGISTER for asynchronous WP");
	hp_say_scan("registered", memory, length, 0, HP_PAGE_PRESENT);
	hp_say_scan("protecting", memory, length, HP_SCAN_WP_MATCHING | HP_SCAN_CHECK_WPASYNC, HP_PAGE_WRITTEN);
	checkpoint("protected");
	hp_say_scan("protected", memory, length, 0, HP_PAGE_WRITTEN);
	hp_write(at(5), 2);
	checkpoint("rewritten");
	hp_say_scan("rewritten", memory, length, 0, HP_PAGE_WRITTEN);
	ktap_ok(true, "scanned");
}

static void move(char *to)
{
	memory = mremap(memory, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (memory == MAP_FAILED)
		hp_die("mremap");
	name_memory();
}

static void tracked(void)
{
	ktap_plan(1);
	fill(0, 1);
	hp_clear_refs(getpid(), "4");
	checkpoint("cleared");
	move(reserve());
	checkpoint("table-moved");
	hp_clear_refs(getpid(), "4");
	checkpoint("cleared-again");
	move(reserve() + KIB(4));
	checkpoint("pages-moved");
	ktap_ok(hp_read(at(0)) == 1, "the content went along");
}

static void split(void)
{
	ktap_plan(1);
	fill(0, 1);
	checkpoint("filled");
	move(reserve());
	checkpoint("moved");
	if (mprotect(at(64), 64 * KIB(4), PROT_READ))
		hp_die("mprotect");
	checkpoint("mprotected");
	if (munmap(at(256), 128 * KIB(4)))
		hp_die("munmap");
	checkpoint("unmapped");
	ktap_ok(hp_read(at(0)) == 1 && hp_read(at(64)) == 1 && hp_read(at(511)) == 1, "what is left is as it was");
}

static const struct control {
	const char *name;
	void (*run)(void);
} cases[] = { { "share", share }, { "uffd", uffd }, { "scan", scan }, { "split", split }, { "tracked", tracked } };

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct control *chosen = hp_choose(&options, "case", "", cases);

	map_memory(hp_choose(&options, "memory", "anon", kinds));
	chosen->run();
	return ktap_finish();
}
