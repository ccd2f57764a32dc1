/* SPDX-License-Identifier: GPL-2.0-only */
/* The page tracking of the kernel: clear_refs, the PAGEMAP_SCAN ioctl, userfaultfd. */
#ifndef HUGEPFN_TRACKING_H
#define HUGEPFN_TRACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Writes WHAT ("1" to "5") to /proc/PID/clear_refs (fs/proc/task_mmu.c, clear_refs_write()). */
void hp_clear_refs(pid_t pid, const char *what);

/* Categories of PAGEMAP_SCAN (include/uapi/linux/fs.h, PAGE_IS_*), for headers that are older than 6.7. */
enum {
	HP_PAGE_WPALLOWED = 1 << 0,
	HP_PAGE_WRITTEN = 1 << 1,
	HP_PAGE_FILE = 1 << 2,
	HP_PAGE_PRESENT = 1 << 3,
	HP_PAGE_SWAPPED = 1 << 4,
	HP_PAGE_PFNZERO = 1 << 5,
	HP_PAGE_HUGE = 1 << 6,
	HP_PAGE_SOFT_DIRTY = 1 << 7,
};

/* Flags of PAGEMAP_SCAN: write-protect what matches; refuse memory without asynchronous userfaultfd tracking. */
enum { HP_SCAN_WP_MATCHING = 1 << 0, HP_SCAN_CHECK_WPASYNC = 1 << 1 };

/* struct page_region of the same header: addresses, and PAGE_IS_* of the range. */
struct hp_scan_range {
	uint64_t start, end, categories;
};

/*
 * PAGEMAP_SCAN of the calling process: finds the ranges of pages that have every category of MASK. Returns their
 * number, at most ROOM, or a negative error number. RANGES may be NULL if ROOM is 0.
 */
long hp_scan(const void *addr, size_t length, uint64_t flags, uint64_t mask, struct hp_scan_range *ranges, size_t room);

/*
 * The same, reported as value NAME: "FIRST-END:CATEGORIES" in pages from ADDR, "none" if there is none, or the name
 * of the error.
 */
void hp_say_scan(const char *name, const void *addr, size_t length, uint64_t flags, uint64_t mask);

/* A userfaultfd with FEATURES (UFFD_FEATURE_*); a negative error number if it is refused. */
int hp_uffd_open(uint64_t features);

/* UFFDIO_REGISTER with MODE (UFFDIO_REGISTER_MODE_*); 0, or the error number. */
int hp_uffd_register(int uffd, void *addr, size_t length, uint64_t mode);

/* UFFDIO_WRITEPROTECT: protects, or releases and wakes; 0, or the error number. */
int hp_uffd_protect(int uffd, void *addr, size_t length, bool protect);

#define HP_UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#define HP_UFFD_FEATURE_WP_ASYNC (1 << 15)

#endif
