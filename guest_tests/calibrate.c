// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: on ordinary memory the walk of the page tables and /proc/PID/pagemap see the same pages: present,
 * pfn and soft-dirty; and a page shared copy-on-write after fork() is read-only in parent and child.
 *
 * --memory=anon|thp|shmem picks the memory: 16 anonymous 4K pages, one 2M transparent huge page, or 16 pages of
 * a shared file.
 *
 * Checkpoints: filled, cleaned (soft-dirty bits cleared), rewritten (page 1, or the whole leaf), forked,
 * child-written.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/tracking.h"

#define PAGES 16

static char *map_thp(size_t *length)
{
	char *memory;

	*length = MIB(2);
	memory = hp_reserve(*length, *length);
	memory = mmap(memory, *length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (memory == MAP_FAILED)
		hp_die("mmap");
	if (madvise(memory, *length, MADV_HUGEPAGE))
		ktap_skip_all("madvise(MADV_HUGEPAGE): %s (no transparent huge pages in this kernel)", strerror(errno));
	return memory;
}

static char *map_pages(bool shared, size_t *length)
{
	int fd = -1;
	char *memory;

	*length = PAGES * KIB(4);
	if (shared) {
		fd = memfd_create("calibrate", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, (off_t)*length))
			hp_die("memfd");
	}
	memory = mmap(NULL, *length, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
	if (memory == MAP_FAILED)
		hp_die("mmap");
	/* No huge pages here: "thp" is for that. */
	madvise(memory, *length, MADV_NOHUGEPAGE);
	return memory;
}

static const struct kind {
	const char *name;
	bool huge, shared;
} kinds[] = { { "anon", false, false }, { "thp", true, false }, { "shmem", false, true } };

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct kind *kind = hp_choose(&options, "memory", "anon", kinds);
	struct hp_gate go;
	char *memory;
	size_t length;
	pid_t child;

	memory = kind->huge ? map_thp(&length) : map_pages(kind->shared, &length);
	hp_map(&(struct hp_mapping){ .name = "memory",
				     .addr = memory,
				     .length = length,
				     .prot = PROT_READ | PROT_WRITE,
				     .backing = HP_RAM,
				     .pagemap_pages = length / KIB(4) });
	ktap_plan(1);

	/* One page is left untouched where pages are single: a hole that both must see. */
	for (size_t at = 0; at < length - KIB(4); at += KIB(4))
		hp_write(memory + at, at + 1);
	checkpoint("filled");

	hp_clear_refs(getpid(), "4");
	checkpoint("cleaned");
	hp_write(memory + KIB(4), 42);
	checkpoint("rewritten");

	hp_gate_init(&go);
	child = hp_fork("child");
	if (!child) {
		hp_gate_wait(&go);
		hp_write(memory, 43);
		checkpoint("child-written");
		_exit(0);
	}
	checkpoint("forked");
	hp_gate_open(&go);
	ktap_ok(hp_reap(child) == 0, "the child wrote and exited");
	return ktap_finish();
}
