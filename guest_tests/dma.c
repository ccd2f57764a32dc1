// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: VFIO_IOMMU_MAP_DMA maps a leaf of a BAR as a whole: the cost does not grow with the leaf's pages, no entry
 * changes, and VFIO_IOMMU_UNMAP_DMA unmaps as much.
 *
 * Measures the CPU time of mapping one leaf of --level for DMA, and of mapping "paged-pages" pte leaves: the minimum of
 * several tries of each, in nanoseconds.
 *
 * Checkpoints: before, after.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"

#define IOVA GIB(4)
#define TRIES 3
#define PAGED_BYTES MIB(2)

static struct hp_bar bar;

/* Maps and unmaps LENGTH bytes from ADDR for DMA; returns the CPU time of the mapping, in nanoseconds. */
static uint64_t map_once(const char *name, void *addr, size_t length)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map),
						.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
						.vaddr = (uint64_t)addr,
						.iova = IOVA,
						.size = length };
	struct vfio_iommu_type1_dma_unmap undo = { .argsz = sizeof(undo), .iova = IOVA, .size = length };
	uint64_t begin = hp_cpu_time_ns(), took;

	if (ioctl(bar.container_fd, VFIO_IOMMU_MAP_DMA, &map))
		hp_die("VFIO_IOMMU_MAP_DMA of the %s mapping", name);
	took = hp_cpu_time_ns() - begin;
	if (ioctl(bar.container_fd, VFIO_IOMMU_UNMAP_DMA, &undo))
		hp_die("VFIO_IOMMU_UNMAP_DMA of the %s mapping", name);
	if (undo.size != length) {
		errno = 0;
		hp_die("VFIO_IOMMU_UNMAP_DMA unmapped %llu bytes of %zu", (unsigned long long)undo.size, length);
	}
	return took;
}

static void say_least(const char *name, void *addr, size_t length)
{
	uint64_t least = map_once(name, addr, length), took;

	for (int i = 1; i < TRIES; i++) {
		took = map_once(name, addr, length);
		least = took < least ? took : least;
	}
	ktap_value(name, "%llu", (unsigned long long)least);
}

/* The BAR's first pages, one entry for each: no larger leaf fits at an address that is not congruent. */
static char *map_paged(void)
{
	char *paged = hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = "paged",
								   .length = PAGED_BYTES,
								   .align = MIB(2),
								   .skew = KIB(4),
								   .prot = PROT_READ | PROT_WRITE });

	for (size_t at = 0; at < PAGED_BYTES; at += 4096)
		hp_read(paged + at);
	return paged;
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	size_t length = hp_leaf_size(options.level);
	char *mapped, *paged;

	bar = hp_bar_open(2);
	mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	ktap_plan(1);
	hp_write(mapped, 1);
	paged = map_paged();
	checkpoint("before");
	ktap_value("paged-pages", "%zu", PAGED_BYTES / 4096);
	say_least("paged-ns", paged, PAGED_BYTES);
	say_least("leaf-ns", mapped, length);
	checkpoint("after");
	ktap_ok(true, "mapped for DMA, and unmapped");
	return ktap_finish();
}
