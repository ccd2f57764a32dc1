// SPDX-License-Identifier: GPL-2.0-only
/*
 * What this kernel can do, found out by trying. Each is a value (ktap_value()). At the checkpoint
 * "saved-dirty" it shows a dirty anonymous page that was set read-only ("readonly"): where its dirty bit went
 * tells whether the kernel has SAVED_DIRTY (arch/x86/include/asm/pgtable.h, pte_wrprotect()).
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/tracking.h"

/* include/uapi/asm-generic/mman-common.h of 6.13, for headers that are older */
#define GUARD_INSTALL 102

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
		ktap_value("thp", "%.*s", (int)(close_bracket - open_bracket - 1), open_bracket + 1);
}

static void note_kvm_clock(void)
{
	char text[256] = "";
	int fd = open("/sys/devices/system/clocksource/clocksource0/available_clocksource", O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && read(fd, text, sizeof(text) - 1) >= 0)
		ktap_value("kvm_clock", "%d", strstr(text, "kvm-clock") != NULL);
	if (fd >= 0)
		close(fd);
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
	ktap_value("soft_dirty", "%d", (int)(hp_pagemap_word(page) >> 55 & 1));
	ktap_value("pagemap_scan", "%d", hp_scan(page, 4096, 0, 0, NULL, 0) >= 0);
	ktap_value("guard_regions", "%d", madvise(guard, 4096, GUARD_INSTALL) == 0);
	note_thp();
	note_kvm_clock();
	ktap_ok(mprotect(page, 4096, PROT_READ) == 0, "a dirty page set read-only");
	hp_map(&(struct hp_mapping){
		.name = "readonly", .addr = page, .length = 4096, .prot = PROT_READ, .backing = HP_RAM, .pagemap_pages = 1 });
	checkpoint("saved-dirty");
	return ktap_finish();
}
