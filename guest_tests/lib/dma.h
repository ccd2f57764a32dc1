/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a device may reach: the IOMMU's page tables of the device under test, filled by VFIO's type1 container.
 *
 * The host walks these tables at every checkpoint. How many bytes VFIO has mapped by its own account (what
 * VFIO_IOMMU_MAP_DMA took, without what VFIO_IOMMU_UNMAP_DMA gave back) is told to the host with the checkpoint, and
 * must agree with the walk.
 */
#ifndef HUGEPFN_DMA_H
#define HUGEPFN_DMA_H

#include "hugepfn.h"

#define HP_RANGES 16

/* The IOMMU's tables of a device. All processes of a run share it, so that a child may map what its parent watches. */
struct hp_iommu {
	char name[32];
	pid_t owner;         /* 0: free */
	uint64_t size_bytes; /* that VFIO has mapped */
};

/*
 * Lets the host know the IOMMU's tables of the device under test by NAME. Skips the run if there is no device that an
 * IOMMU translates. It is the calling process's: only this one declares ranges.
 */
struct hp_iommu *hp_iommu_watch(const char *name);

/* A range of IO virtual addresses, and the part of the calling process's memory that it is to map. */
struct hp_dma_range {
	const char *name;
	uint64_t iova;
	void *addr;
	size_t length;
	int prot;                /* PROT_*: what the device may do */
	enum hp_backing backing; /* what ADDR is a mapping of, as in struct hp_mapping */
	uint64_t file_offset;
	const char *region;      /* which BAR; NULL: "bar" */
};

/* Declares a range, mapped or not, or replaces the one of that name. */
void hp_iommu_range(const struct hp_iommu *iommu, const struct hp_dma_range *range);

/* VFIO_IOMMU_MAP_DMA of a range; returns 0 or the error number. */
int hp_dma_map(struct hp_iommu *iommu, const struct hp_bar *bar, const struct hp_dma_range *range);

/* How VFIO_IOMMU_UNMAP_DMA ended: 0 or the error number, and the bytes that it says it unmapped. */
struct hp_dma_unmapped {
	int error;
	uint64_t size_bytes;
};

/* VFIO_IOMMU_UNMAP_DMA of LENGTH bytes at IOVA. */
struct hp_dma_unmapped hp_dma_unmap(struct hp_iommu *iommu, const struct hp_bar *bar, uint64_t iova, size_t length);

/* VFIO_IOMMU_UNMAP_DMA of everything (VFIO_DMA_UNMAP_FLAG_ALL). */
struct hp_dma_unmapped hp_dma_unmap_all(struct hp_iommu *iommu, const struct hp_bar *bar);

/* The container was closed, by this process or with another: VFIO has nothing mapped any more. */
void hp_iommu_closed(struct hp_iommu *iommu);

#endif
