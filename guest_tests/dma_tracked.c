// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: VFIO_IOMMU_MAP_DMA maps what its process may write, also where the kernel has made an entry read-only only
 * to see the next write.
 *
 * --case=written  the leaf was written, then clear_refs 4 came
 * --case=fresh    clear_refs 4 came before the first access, so that MAP_DMA faults the leaf in
 *
 * Value "map": how MAP_DMA for read and write ended. Checkpoints: before, mapped.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/tracking.h"

static const struct dma_case {
	const char *name;
	bool written;
} cases[] = {
	{ .name = "written", .written = true },
	{ .name = "fresh" },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct dma_case *chosen = hp_choose(&options, "case", "written", cases);
	struct hp_bar bar = hp_bar_open(2);
	char *mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map),
						.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
						.vaddr = (uint64_t)mapped,
						.iova = GIB(4),
						.size = 4096 };

	ktap_plan(1);
	if (chosen->written)
		hp_write(mapped, 1);
	hp_clear_refs(getpid(), "4");
	checkpoint("before");
	ktap_value("map", "%s", hp_errno_name(ioctl(bar.container_fd, VFIO_IOMMU_MAP_DMA, &map) ? errno : 0));
	checkpoint("mapped");
	ktap_ok(true, "MAP_DMA has answered");
	return ktap_finish();
}
