// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: VFIO_IOMMU_UNMAP_DMA takes whole calls of VFIO_IOMMU_MAP_DMA, as many as the range covers, or nothing.
 *
 * The leaf is mapped at two IO virtual addresses, one behind the other. Then:
 *
 * --case=all     everything is unmapped at once (VFIO_DMA_UNMAP_FLAG_ALL)
 * --case=both    a range that covers both is unmapped
 * --case=one     the second is unmapped
 * --case=part    a page of the first is unmapped
 * --case=nothing a range that has nothing mapped is unmapped
 * --case=again   the leaf is mapped a second time at the first address
 *
 * Mappings: "bar". The IOMMU is "iommu", with the ranges "first" and "second".
 * Checkpoints: mapped, done.
 */
#include <sys/mman.h>

#include "lib/dma.h"
#include "lib/hugepfn.h"

#define IOVA GIB(1)
#define RIGHTS (PROT_READ | PROT_WRITE)

static struct hp_bar bar;
static struct hp_iommu *iommu;
static struct hp_dma_range first, second;

static struct hp_dma_unmapped all(void)
{
	return hp_dma_unmap_all(iommu, &bar);
}

static struct hp_dma_unmapped both(void)
{
	return hp_dma_unmap(iommu, &bar, first.iova, 2 * first.length);
}

static struct hp_dma_unmapped one(void)
{
	return hp_dma_unmap(iommu, &bar, second.iova, second.length);
}

static struct hp_dma_unmapped part(void)
{
	return hp_dma_unmap(iommu, &bar, first.iova, 4096);
}

static struct hp_dma_unmapped nothing(void)
{
	return hp_dma_unmap(iommu, &bar, second.iova + second.length, second.length);
}

static struct hp_dma_unmapped again(void)
{
	return (struct hp_dma_unmapped){ .error = hp_dma_map(iommu, &bar, &first) };
}

static const struct part_case {
	const char *name;
	struct hp_dma_unmapped (*act)(void);
} cases[] = {
	{ "all", all }, { "both", both }, { "one", one }, { "part", part }, { "nothing", nothing }, { "again", again },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct part_case *chosen = hp_choose(&options, "case", "all", cases);
	size_t length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level);
	struct hp_dma_unmapped how;
	char *mapped;

	bar = hp_bar_open(2);
	mapped = hp_bar_map(&bar, options.level, RIGHTS);
	iommu = hp_iommu_watch("iommu");
	first = (struct hp_dma_range){
		.name = "first", .iova = IOVA, .addr = mapped, .length = length, .prot = RIGHTS
	};
	second = first;
	second.name = "second";
	second.iova += length;
	ktap_plan(1);
	hp_iommu_range(iommu, &first);
	hp_iommu_range(iommu, &second);
	hp_read(mapped);
	ktap_value("first", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &first)));
	ktap_value("second", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &second)));
	checkpoint("mapped");
	how = chosen->act();
	ktap_value("error", "%s", hp_errno_name(how.error));
	ktap_value("bytes", "%llu", (unsigned long long)how.size_bytes);
	checkpoint("done");
	ktap_ok(true, "the calls ended");
	return ktap_finish();
}
