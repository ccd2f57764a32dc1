// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: what VFIO_IOMMU_MAP_DMA has mapped stays mapped until it is unmapped, whatever happens to the process's own
 * mapping; nothing can be mapped that the process cannot reach.
 *
 * --case=memory   the device's memory is switched off, and on again
 * --case=munmap   the mapping is unmapped, and mapped again
 * --case=protnone mprotect() to PROT_NONE, and back
 * --case=unread   the same, and what is tried meanwhile is a mapping that the device may only read
 *
 * Mappings: "bar". The IOMMU is "iommu", with the ranges "bar" and "late", which is tried while the mapping is gone, and
 * once more when it is back.
 * Checkpoints: mapped, gone, tried, back, unmapped.
 */
#include <sys/mman.h>

#include "lib/dma.h"
#include "lib/hugepfn.h"

#define IOVA GIB(1)
#define RIGHTS (PROT_READ | PROT_WRITE)

static struct hp_bar bar;
static char *mapped;
static size_t length;

static void memory_off(void)
{
	hp_bar_memory(&bar, false);
}

static void memory_on(void)
{
	hp_bar_memory(&bar, true);
}

static void unmap(void)
{
	if (munmap(mapped, length))
		hp_die("munmap");
	hp_bar_name("bar", mapped, length, PROT_NONE, 0);
}

static void map_again(void)
{
	if (mmap(mapped, length, RIGHTS, MAP_SHARED | MAP_FIXED, bar.device_fd, (off_t)bar.offset) == MAP_FAILED)
		hp_die("mmap");
	hp_bar_name("bar", mapped, length, RIGHTS, 0);
}

static void protect(int prot)
{
	if (mprotect(mapped, length, prot))
		hp_die("mprotect");
	hp_bar_name("bar", mapped, length, prot, 0);
}

static void no_rights(void)
{
	protect(PROT_NONE);
}

static void all_rights(void)
{
	protect(RIGHTS);
}

static const struct gone {
	const char *name;
	void (*take)(void), (*give)(void);
	bool read_only; /* what is tried */
} cases[] = {
	{ "memory", memory_off, memory_on, false },
	{ "munmap", unmap, map_again, false },
	{ "protnone", no_rights, all_rights, false },
	{ "unread", no_rights, all_rights, true },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct gone *chosen = hp_choose(&options, "case", "memory", cases);
	struct hp_dma_range range, late;
	struct hp_dma_unmapped undone;
	struct hp_iommu *iommu;

	bar = hp_bar_open(2);
	length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level);
	mapped = hp_bar_map(&bar, options.level, RIGHTS);
	iommu = hp_iommu_watch("iommu");
	range = (struct hp_dma_range){ .name = "bar", .iova = IOVA, .addr = mapped, .length = length, .prot = RIGHTS };
	late = range;
	late.name = "late";
	late.iova += length;
	late.prot = chosen->read_only ? PROT_READ : RIGHTS;
	ktap_plan(1);
	hp_iommu_range(iommu, &range);
	hp_iommu_range(iommu, &late);
	hp_read(mapped);
	ktap_value("before", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &range)));
	checkpoint("mapped");
	chosen->take();
	checkpoint("gone");
	ktap_value("while", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &late)));
	checkpoint("tried");
	chosen->give();
	ktap_value("after", "%s", hp_errno_name(hp_dma_map(iommu, &bar, &late)));
	checkpoint("back");
	undone = hp_dma_unmap(iommu, &bar, range.iova, 2 * length);
	ktap_value("unmapped", "%llu", (unsigned long long)undone.size_bytes);
	checkpoint("unmapped");
	ktap_ok(true, "the calls ended");
	return ktap_finish();
}
