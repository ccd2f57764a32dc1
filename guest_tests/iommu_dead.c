// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a process that is killed leaves nothing in the IOMMU's tables of its device.
 *
 * Mappings: of the child, "bar". The IOMMU is "iommu", which the parent watches, with the range "bar".
 * Checkpoints: mapped (the child's), dead.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/dma.h"
#include "lib/hugepfn.h"

static _Noreturn void map_and_wait(const struct hp_options *options, struct hp_iommu *iommu, struct hp_dma_range range,
				   const struct hp_gate *mapped, const struct hp_gate *never)
{
	struct hp_bar bar = hp_bar_open(2);

	range.addr = hp_bar_map(&bar, options->level, range.prot);
	hp_read(range.addr);
	if ((errno = hp_dma_map(iommu, &bar, &range)))
		hp_die("VFIO_IOMMU_MAP_DMA");
	checkpoint("mapped");
	hp_gate_open(mapped);
	hp_gate_wait(never);
	_exit(0);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_iommu *iommu = hp_iommu_watch("iommu");
	struct hp_dma_range range = { .name = "bar",
				      .iova = GIB(1),
				      .length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level),
				      .prot = PROT_READ | PROT_WRITE };
	struct hp_gate mapped, never;
	int status;
	pid_t child;

	ktap_plan(1);
	hp_iommu_range(iommu, &range);
	hp_gate_init(&mapped);
	hp_gate_init(&never);
	child = hp_fork("child");
	if (!child)
		map_and_wait(&options, iommu, range, &mapped, &never);
	hp_gate_wait(&mapped);
	if (kill(child, SIGKILL))
		hp_die("kill");
	status = hp_reap(child);
	hp_iommu_closed(iommu);
	checkpoint("dead");
	ktap_ok(WIFSIGNALED(status), "the child was killed");
	return ktap_finish();
}
