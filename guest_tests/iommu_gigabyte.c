// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: one VFIO_IOMMU_MAP_DMA of 1 GiB of a BAR arrives as one pud, whatever leaves the process has there.
 *
 * Reports "map-ns", the CPU time of the call: a kernel that looks up page by page needs seconds under TCG.
 *
 * Mappings: "bar", at --level=pte only its first 2 MiB. The IOMMU is "iommu", with the range "bar".
 * Checkpoints: mapped.
 */
#include <sys/mman.h>

#include "lib/dma.h"
#include "lib/hugepfn.h"

#define RIGHTS (PROT_READ | PROT_WRITE)

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	size_t leaf = hp_leaf_size(options.level), length = GIB(1);
	struct hp_bar bar = hp_bar_open(2);
	/* An address that is off by one leaf: no larger one fits. */
	char *mapped = hp_bar_map_area(&bar, &(struct hp_bar_area){ .length = length,
								    .align = GIB(1),
								    .skew = options.level == HP_PUD ? 0 : leaf,
								    .prot = RIGHTS });
	struct hp_iommu *iommu = hp_iommu_watch("iommu");
	struct hp_dma_range range = { .name = "bar", .iova = GIB(1), .addr = mapped, .length = length, .prot = RIGHTS };
	struct hp_dma_unmapped undone;
	uint64_t begin;

	ktap_plan(1);
	if (options.level == HP_PTE)
		hp_bar_name("bar", mapped, MIB(2), RIGHTS, 0);
	for (size_t at = 0; at < length; at += leaf)
		hp_read(mapped + at);
	hp_iommu_range(iommu, &range);
	begin = hp_cpu_time_ns();
	ktap_value("map", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &range)));
	ktap_value("map-ns", "%llu", (unsigned long long)(hp_cpu_time_ns() - begin));
	checkpoint("mapped");
	undone = hp_dma_unmap(iommu, &bar, range.iova, range.length);
	ktap_value("unmapped", "%llu", (unsigned long long)undone.size_bytes);
	ktap_ok(true, "the calls ended");
	return ktap_finish();
}
