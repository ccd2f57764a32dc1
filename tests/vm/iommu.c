// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two leaves of the BAR, mapped for the device. --case=lie tells the host half of the size. Checkpoint: seen.
 */
#include <string.h>
#include <sys/mman.h>

#include "lib/dma.h"
#include "lib/hugepfn.h"

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_iommu *iommu = hp_iommu_watch("iommu");
	struct hp_bar bar = hp_bar_open(2);
	struct hp_dma_range range = { .name = "bar",
				      .iova = GIB(1),
				      .addr = hp_bar_map(&bar, HP_PMD, PROT_READ | PROT_WRITE),
				      .length = MIB(2),
				      .prot = PROT_READ | PROT_WRITE },
			    other = range;

	ktap_plan(1);
	other.name = "other";
	other.iova = GIB(2);
	hp_iommu_range(iommu, &range);
	ktap_ok(!hp_dma_map(iommu, &bar, &range) && !hp_dma_map(iommu, &bar, &other), "both are mapped");
	if (!strcmp(hp_option(&options, "case", ""), "lie"))
		iommu->size_bytes /= 2;
	checkpoint("seen");
	return ktap_finish();
}
