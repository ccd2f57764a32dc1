// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a thread that reads what the kernel reports about a process's memory gets its answers while another thread
 * faults, maps the BAR for DMA, forks, moves the mapping or has the device revoke it; the other's calls succeed as if
 * nothing were read, and one leaf of the level is left.
 *
 * --reader=NAME reads all the time, --actor=NAME acts --rounds=N times (see the tables). Then the reader is joined, the
 * mapping is read once, and the checkpoint "raced" shows what is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/tracking.h"

#define RW (PROT_READ | PROT_WRITE)
#define IOVA MIB(4096)
#define DMA_BYTES KIB(64)

static struct hp_bar bar;
static char *mapped, *other; /* where the mapping is, and where mremap() moves it */
static size_t length, dma_bytes;
static atomic_bool stop;
static atomic_long reads;
static long refused;                 /* calls of the actor that failed, */
static const char *refusal = "none"; /* and with which error the last of them did */

static void note_refusal(void)
{
	refused++;
	refusal = hp_errno_name(errno);
}

/* --- readers: one pass each, from a descriptor that stays open ---------------------------------------------------- */

static int open_self(const char *name, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		hp_die("%s", path);
	return fd;
}

/* The whole file, once more. */
static void read_text(int fd)
{
	static char text[KIB(64)];
	ssize_t n;

	if (lseek(fd, 0, SEEK_SET))
		hp_die("lseek");
	while ((n = read(fd, text, sizeof(text))) > 0)
		;
	if (n < 0)
		hp_die("read");
}

static void read_pagemap(int fd)
{
	static uint64_t words[512];
	size_t bytes = length / 4096 * sizeof(*words);

	if (pread(fd, words, bytes < sizeof(words) ? bytes : sizeof(words), (off_t)((uintptr_t)mapped / 4096 * 8)) <= 0)
		hp_die("pread of pagemap");
}

static void scan(int fd)
{
	struct hp_scan_range ranges[4];

	(void)fd;
	if (hp_scan(mapped, length, 0, 0, ranges, 4) < 0)
		hp_die("PAGEMAP_SCAN");
}

/* 1: the accessed bits. Not 4: a huge leaf mapped after that cannot be written (HP-004), with or without a race. */
static void clear_refs(int fd)
{
	if (write(fd, "1", 1) != 1)
		hp_die("clear_refs");
}

static const struct reader {
	const char *name, *file;
	void (*once)(int fd);
	int flags;
} readers[] = {
	{ "pagemap", "pagemap", read_pagemap, O_RDONLY },
	{ "scan", "pagemap", scan, O_RDONLY },
	{ "clear-refs", "clear_refs", clear_refs, O_WRONLY },
	{ "smaps", "smaps", read_text, O_RDONLY },
	{ "smaps-rollup", "smaps_rollup", read_text, O_RDONLY },
	{ "numa-maps", "numa_maps", read_text, O_RDONLY },
};

static void *read_on(void *argument)
{
	const struct reader *reader = argument;
	int fd = open_self(reader->file, reader->flags);

	while (!stop) {
		reader->once(fd);
		reads++;
	}
	close(fd);
	return NULL;
}

/* Waits for a pass that begins after this call: the second that is counted, since one may be under way. */
static void one_more_read(void)
{
	long enough = reads + 2;

	while (reads < enough)
		sched_yield();
}

/* --- actors: one round each ----------------------------------------------------------------------------------- */

/* Touches a fresh mapping during two passes of the reader: if a pass zaps the leaf, it is back at once. */
static void fault(void)
{
	long enough = reads + 2;

	if (mmap(mapped, length, RW, MAP_SHARED | MAP_FIXED, bar.device_fd, (off_t)bar.offset) != mapped)
		hp_die("mmap");
	do
		hp_read(mapped + length / 2);
	while (reads < enough);
}

static void dma(void)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map),
						.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
						.vaddr = (uint64_t)mapped + length / 2,
						.iova = IOVA,
						.size = dma_bytes };
	struct vfio_iommu_type1_dma_unmap undo = { .argsz = sizeof(undo), .iova = IOVA, .size = dma_bytes };

	if (ioctl(bar.container_fd, VFIO_IOMMU_MAP_DMA, &map))
		note_refusal();
	else if (ioctl(bar.container_fd, VFIO_IOMMU_UNMAP_DMA, &undo))
		hp_die("VFIO_IOMMU_UNMAP_DMA");
}

static void forks(void)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		hp_die("fork");
	if (!child) {
		hp_read(mapped);
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child)
		hp_die("waitpid");
	if (status) {
		errno = 0;
		hp_die("a child ended with status %d", status);
	}
}

/* Keeps the addresses of the future mapping free of others. */
static char *reserve(char *where)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	if (mmap(where, length, PROT_NONE, flags, -1, 0) != where)
		hp_die("mmap of a reservation");
	return where;
}

static void moves(void)
{
	char *to = other;

	hp_read(mapped);
	if (mremap(mapped, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		hp_die("mremap");
	other = reserve(mapped);
	mapped = to;
}

static int low_power(uint32_t feature)
{
	struct vfio_device_feature arg = { .argsz = sizeof(arg), .flags = VFIO_DEVICE_FEATURE_SET | feature };

	return ioctl(bar.device_fd, VFIO_DEVICE_FEATURE, &arg);
}

/*
 * The device's memory goes off and on, by low power, which revokes as PCI_COMMAND does. PCI_COMMAND would also change
 * QEMU's map of physical memory under the other CPU; with QEMU 7.2 a soft lockup was seen then, most likely from a lost
 * interrupt (docs/decisions/machines.md).
 */
static void revokes(void)
{
	if (low_power(VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY) || low_power(VFIO_DEVICE_FEATURE_LOW_POWER_EXIT))
		hp_die("low power");
	hp_read(mapped);
}

static const struct actor {
	const char *name;
	void (*once)(void);
} actors[] = {
	{ "fault", fault }, { "dma", dma }, { "fork", forks }, { "mremap", moves }, { "revoke", revokes },
};

/* --- both ------------------------------------------------------------------------------------------------------ */

static void race(const struct reader *reader, const struct actor *actor, long rounds)
{
	pthread_t thread;
	long tables;

	errno = pthread_create(&thread, NULL, read_on, (void *)reader);
	if (errno)
		hp_die("pthread_create");
	one_more_read(); /* the page tables that the thread itself needs exist now */
	hp_read(mapped);
	tables = hp_page_table_kib(0);
	for (long i = 0; i < rounds; i++) {
		if (i % 32 == 0)
			one_more_read();
		actor->once();
	}
	stop = true;
	errno = pthread_join(thread, NULL);
	if (errno)
		hp_die("pthread_join");
	hp_read(mapped);
	hp_bar_name("bar", mapped, length, RW, 0);
	checkpoint("raced");
	ktap_value("reads", "%ld", reads);
	ktap_value("refused", "%ld of %ld", refused, rounds);
	ktap_value("refusal", "%s", refusal);
	ktap_value("tables-kib", "%ld", hp_page_table_kib(0) - tables);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct reader *reader = hp_choose(&options, "reader", "", readers);
	const struct actor *actor = hp_choose(&options, "actor", "", actors);
	long rounds = strtol(hp_option(&options, "rounds", "200"), NULL, 10);
	char path[64];

	bar = hp_bar_open(2);
	snprintf(path, sizeof(path), "/proc/self/%s", reader->file);
	if (access(path, F_OK))
		ktap_skip_all("this kernel has no %s", path);
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		ktap_skip_all("only one CPU: no race is possible");
	length = options.level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(options.level);
	dma_bytes = length / 2 < DMA_BYTES ? length / 2 : DMA_BYTES;
	mapped = hp_bar_map(&bar, options.level, RW);
	other = reserve(hp_reserve(length, hp_leaf_size(options.level)));
	if (actor->once == revokes && (low_power(VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY) ||
				      low_power(VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)))
		ktap_skip_all("vfio-pci has no low power entry: %s", hp_errno_name(errno));
	ktap_plan(1);
	race(reader, actor, rounds);
	ktap_ok(true, "the threads met");
	return ktap_finish();
}
