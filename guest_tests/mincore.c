// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: mincore() gives the same answer for every page of a pfnmap, whatever the level of its entries, and changes
 * none of them.
 *
 * --touch=0: nothing is mapped when mincore() is called. The value "vector" is the bytes that it returned, run-length
 * encoded, and "errno" its error; "anon-*" are the same for two anonymous pages, the first of them written; "pages-*"
 * for three 4K entries of the same BAR.
 *
 * Checkpoints: before, asked.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"

#define PAGE 4096
#define RIGHTS (PROT_READ | PROT_WRITE)

/* "1*512": the vector's bytes from the start. Bytes that mincore() never wrote are 170. */
static void ask(const char *prefix, void *at, size_t length)
{
	size_t pages = length / PAGE, used = 0;
	unsigned char *vector = malloc(pages);
	char name[64], text[256] = "";
	int error;

	if (!vector)
		hp_die("malloc");
	memset(vector, 170, pages);
	error = mincore(at, length, vector) ? errno : 0;
	snprintf(name, sizeof(name), "%serrno", prefix);
	ktap_value(name, "%s", hp_errno_name(error));
	for (size_t i = 0, next; i < pages && used < sizeof(text) - 32; i = next) {
		for (next = i + 1; next < pages && vector[next] == vector[i]; next++)
			;
		used += (size_t)sprintf(text + used, "%s%u*%zu", i ? " " : "", vector[i], next - i);
	}
	snprintf(name, sizeof(name), "%svector", prefix);
	ktap_value(name, "%s", text);
	free(vector);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_bar bar = hp_bar_open(2);
	size_t length = options.level == HP_PTE ? 4 * PAGE : hp_leaf_size(options.level);
	char *base = hp_bar_map(&bar, options.level, RIGHTS);
	char *anon = mmap(NULL, 2 * PAGE, RIGHTS, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *pages = hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = "pages", .length = 3 * PAGE, .prot = RIGHTS });

	if (anon == MAP_FAILED || madvise(anon, 2 * PAGE, MADV_NOHUGEPAGE))
		hp_die("two anonymous pages");
	ktap_plan(1);
	hp_write(anon, 1);
	for (size_t at = 0; at < 3 * PAGE; at += PAGE)
		hp_read(pages + at);
	if (atoi(hp_option(&options, "touch", "1")))
		for (size_t at = 0; at < length; at += options.level == HP_PTE ? PAGE : length)
			hp_write(base + at, 1);
	checkpoint("before");
	ask("anon-", anon, 2 * PAGE);
	ask("pages-", pages, 3 * PAGE);
	ask("", base, length);
	checkpoint("asked");
	ktap_value("write-faults", "%ld", hp_write_faults(base, 2));
	ktap_ok(true, "asked");
	return ktap_finish();
}
