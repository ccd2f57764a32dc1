// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads another process's pagemap into its own memory, lets the host walk that process's tables
 * (checkpoint "read"), and only then reports what it read: "# page VADDR WORD" for each word that is not 0, in hex.
 * Nothing wakes the other process in between, not even PID 1, which would have to forward the output.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define PAGE 4096UL
#define MAX_PAGES 65536

static struct page {
	unsigned long vaddr;
	uint64_t word;
} pages[MAX_PAGES];
static size_t count;

static void read_area(int pagemap, unsigned long start, unsigned long end)
{
	static uint64_t words[512];

	while (start < end) {
		size_t want = (end - start) / PAGE < 512 ? (end - start) / PAGE : 512;

		if (pread(pagemap, words, want * 8, (off_t)(start / PAGE * 8)) != (ssize_t)(want * 8))
			hp_die("pagemap");
		for (size_t i = 0; i < want; i++) {
			if (!words[i])
				continue;
			if (count == MAX_PAGES)
				hp_die("more than %d pages", MAX_PAGES);
			pages[count++] = (struct page){ start + i * PAGE, words[i] };
		}
		start += want * PAGE;
	}
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const char *pid = hp_option(&options, "pid", "1");
	unsigned long start, end;
	char path[64], line[512];
	FILE *maps;
	int pagemap;

	ktap_plan(1);
	snprintf(path, sizeof(path), "/proc/%s/pagemap", pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	maps = fopen(path, "re");
	if (!maps || pagemap < 0)
		hp_die("%s", path);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && !strstr(line, "[vsyscall]"))
			read_area(pagemap, start, end);
	checkpoint("read");
	for (size_t i = 0; i < count; i++)
		ktap_note("page %lx %" PRIx64, pages[i].vaddr, pages[i].word);
	ktap_ok(true, "read");
	return ktap_finish();
}
