// SPDX-License-Identifier: GPL-2.0-only
/* The IOMMU's tables of the device, filled by VFIO's type1 container (Documentation/driver-api/vfio.rst). */
#include <errno.h>
#include <inttypes.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dma.h"
#include "shared.h"

#define IOMMUS 8

static struct hp_iommu *iommus; /* IOMMUS of them, in memory that all processes share */

struct hp_iommu *hp_iommu_watch(const char *name)
{
	const char *bdf = getenv("HUGEPFN_VFIO_BDF"), *why = getenv("HUGEPFN_VFIO_WHY");
	struct hp_iommu *iommu = NULL;

	check_name(name);
	if (!bdf)
		ktap_skip_all("no device behind an IOMMU: %s", why ? why : "not started by the agent");
	if (!iommus) {
		iommus = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (iommus == MAP_FAILED)
			hp_die("mmap of the shared table of IOMMUs");
	}
	for (int i = 0; i < IOMMUS && !iommu; i++)
		if (!iommus[i].owner)
			iommu = &iommus[i];
	if (!iommu) {
		errno = ENOSPC;
		hp_die("more than %d IOMMUs", IOMMUS);
	}
	strcpy(iommu->name, name);
	iommu->owner = getpid();
	tell("iommu %s %d %s\n", name, getpid(), bdf);
	return iommu;
}

void hp_iommu_range(const struct hp_iommu *iommu, const struct hp_dma_range *range)
{
	const char *backing = range->backing == HP_RAM ? "ram" : range->region ? range->region : "bar";

	check_name(range->name);
	tell("slot %s %s %d %" PRIx64 " %zx %" PRIx64 " %x %s %" PRIx64 "\n", range->name, iommu->name, getpid(),
	     range->iova, range->length, (uint64_t)(uintptr_t)range->addr, (unsigned int)range->prot, backing,
	     range->file_offset);
}

int hp_dma_map(struct hp_iommu *iommu, const struct hp_bar *bar, const struct hp_dma_range *range)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map),
						.vaddr = (uint64_t)(uintptr_t)range->addr,
						.iova = range->iova,
						.size = range->length };

	if (range->prot & PROT_READ)
		map.flags |= VFIO_DMA_MAP_FLAG_READ;
	if (range->prot & PROT_WRITE)
		map.flags |= VFIO_DMA_MAP_FLAG_WRITE;
	if (ioctl(bar->container_fd, VFIO_IOMMU_MAP_DMA, &map))
		return errno;
	iommu->size_bytes += range->length;
	return 0;
}

static struct hp_dma_unmapped unmap(struct hp_iommu *iommu, const struct hp_bar *bar,
				    struct vfio_iommu_type1_dma_unmap *undo)
{
	struct hp_dma_unmapped how = { .error = 0 };

	undo->argsz = sizeof(*undo);
	if (ioctl(bar->container_fd, VFIO_IOMMU_UNMAP_DMA, undo))
		how.error = errno;
	else
		how.size_bytes = undo->size;
	iommu->size_bytes -= how.size_bytes;
	return how;
}

struct hp_dma_unmapped hp_dma_unmap(struct hp_iommu *iommu, const struct hp_bar *bar, uint64_t iova, size_t length)
{
	return unmap(iommu, bar, &(struct vfio_iommu_type1_dma_unmap){ .iova = iova, .size = length });
}

struct hp_dma_unmapped hp_dma_unmap_all(struct hp_iommu *iommu, const struct hp_bar *bar)
{
	return unmap(iommu, bar, &(struct vfio_iommu_type1_dma_unmap){ .flags = VFIO_DMA_UNMAP_FLAG_ALL });
}

void hp_iommu_closed(struct hp_iommu *iommu)
{
	iommu->size_bytes = 0;
}

void tell_iommus(void)
{
	for (int i = 0; iommus && i < IOMMUS; i++)
		if (iommus[i].owner)
			tell("dma %s %d %" PRIx64 "\n", iommus[i].name, iommus[i].owner, iommus[i].size_bytes);
}
