// SPDX-License-Identifier: GPL-2.0-only
/*
 * What this kernel can do, found out by trying. Says "# cap NAME=VALUE" for each, and at the checkpoint
 * "saved-dirty" shows a dirty anonymous page that was set read-only ("readonly"): where its dirty bit went
 * tells whether the kernel has SAVED_DIRTY (arch/x86/include/asm/pgtable.h, pte_wrprotect()).
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"

/* include/uapi/linux/fs.h of 6.7 and mman-common.h of 6.13, for headers that are older */
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define GUARD_INSTALL 102

static bool has_soft_dirty(const void *page)
{
	uint64_t word = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || pread(fd, &word, sizeof(word), (off_t)((uintptr_t)page / 4096 * 8)) != sizeof(word))
		hp_die("/proc/self/pagemap");
	close(fd);
	return word >> 55 & 1;
}

static bool has_pagemap_scan(void *page)
{
	struct scan_arg arg = { .size = sizeof(arg), .start = (uint64_t)page, .end = (uint64_t)page + 4096 };
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool answers = fd >= 0 && ioctl(fd, SCAN_IOCTL, &arg) >= 0;

	close(fd);
	return answers;
}

static void note_thp(void)
{
	char text[128] = "", *open_bracket, *close_bracket;
	int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		return;
	close(fd);
	open_bracket = strchr(text, '[');
	close_bracket = strchr(text, ']');
	if (open_bracket && close_bracket)
		ktap_note("cap thp=%.*s", (int)(close_bracket - open_bracket - 1), open_bracket + 1);
}

int main(int argc, char **argv)
{
	hp_start(argc, argv);

	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *guard = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED || guard == MAP_FAILED)
		hp_die("mmap");
	ktap_plan(1);
	hp_write(page, 1);
	ktap_note("cap soft_dirty=%d", has_soft_dirty(page));
	ktap_note("cap pagemap_scan=%d", has_pagemap_scan(page));
	ktap_note("cap guard_regions=%d", madvise(guard, 4096, GUARD_INSTALL) == 0);
	note_thp();
	ktap_ok(mprotect(page, 4096, PROT_READ) == 0, "a dirty page set read-only");
	hp_map(&(struct hp_mapping){
		.name = "readonly", .addr = page, .length = 4096, .prot = PROT_READ, .backing = HP_RAM, .pagemap_pages = 1 });
	checkpoint("saved-dirty");
	return ktap_finish();
}
