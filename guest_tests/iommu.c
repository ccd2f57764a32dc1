// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: VFIO_IOMMU_MAP_DMA maps a leaf of a BAR into the IOMMU as large as it is, if IO virtual address, length and
 * pfn allow it, and with the rights that were asked for; VFIO_IOMMU_UNMAP_DMA takes all of it.
 *
 * --case=whole     one call for the whole leaf, at an address that is aligned as the leaf is
 * --case=middle    from the middle of the leaf to its end, at such an address plus as much
 * --case=skewed    the whole leaf, at an address that is off by a leaf of the next smaller size
 * --case=no-write  the same as whole, without VFIO_DMA_MAP_FLAG_WRITE
 * --case=read-only the mapping has only PROT_READ: first with, then without VFIO_DMA_MAP_FLAG_WRITE
 *
 * Mappings: "bar". The IOMMU is "iommu", with the range "bar".
 * Checkpoints: opened, mapped, unmapped.
 */
#include <sys/mman.h>

#include "lib/dma.h"
#include "lib/hugepfn.h"

#define IOVA GIB(1)
#define RIGHTS (PROT_READ | PROT_WRITE)

static const struct iommu_case {
	const char *name;
	bool half, skewed;
	int mapped, asked; /* PROT_* of the mapping, and of the device */
} cases[] = {
	{ .name = "whole", .mapped = RIGHTS, .asked = RIGHTS },
	{ .name = "middle", .half = true, .mapped = RIGHTS, .asked = RIGHTS },
	{ .name = "skewed", .skewed = true, .mapped = RIGHTS, .asked = RIGHTS },
	{ .name = "no-write", .mapped = RIGHTS, .asked = PROT_READ },
	{ .name = "read-only", .mapped = PROT_READ, .asked = PROT_READ },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct iommu_case *chosen = hp_choose(&options, "case", "whole", cases);
	size_t leaf = hp_leaf_size(options.level), length = options.level == HP_PTE ? 4 * leaf : leaf;
	size_t from = chosen->half ? length / 2 : 0, skew = chosen->skewed ? leaf / 512 : 0;
	struct hp_bar bar = hp_bar_open(2);
	char *mapped = hp_bar_map(&bar, options.level, chosen->mapped);
	struct hp_iommu *iommu = hp_iommu_watch("iommu");
	struct hp_dma_range range = { .name = "bar",
				      .iova = IOVA + from + skew,
				      .addr = mapped + from,
				      .length = length - from,
				      .prot = chosen->asked,
				      .file_offset = from };
	struct hp_dma_unmapped undone;

	ktap_plan(1);
	hp_iommu_range(iommu, &range);
	hp_read(mapped);
	checkpoint("opened");
	if (chosen->mapped == PROT_READ) {
		struct hp_dma_range more = range;

		more.prot = RIGHTS;
		ktap_value("map-writable", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &more)));
	}
	ktap_value("map", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &range)));
	checkpoint("mapped");
	undone = hp_dma_unmap(iommu, &bar, range.iova, range.length);
	ktap_value("unmap", "%s", hp_errno_name(undone.error));
	ktap_value("unmapped", "%llu", (unsigned long long)undone.size_bytes);
	checkpoint("unmapped");
	ktap_ok(true, "the calls ended");
	return ktap_finish();
}
