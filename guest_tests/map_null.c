// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: mmap(NULL, ...) of a BAR works whatever address the kernel picks, and the leaves are the largest that this
 * address allows.
 *
 * Maps --length bytes of the BAR from --offset (hexadecimal) where the kernel chooses, COUNT times, and reports how
 * many of the addresses are congruent with the offset modulo 2M and modulo 1G. The last mapping is "bar", and is
 * read at its start, at its first multiple of 2M and at its end: checkpoint "touched".
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"

#define COUNT 8

/* Every mapping stays, with a page between it and the next: where addresses are not aligned, no two are alike. */
static char *map_many(const struct hp_bar *bar, uint64_t offset, size_t length)
{
	unsigned int congruent_2m = 0, congruent_1g = 0;
	char *mapped = NULL;

	for (int i = 0; i < COUNT; i++) {
		mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, bar->device_fd, (off_t)(bar->offset + offset));
		if (mapped == MAP_FAILED)
			hp_die("mmap of %zu bytes of the BAR", length);
		congruent_2m += ((uintptr_t)mapped - offset) % MIB(2) == 0;
		congruent_1g += ((uintptr_t)mapped - offset) % GIB(1) == 0;
		if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
			hp_die("mmap of a page");
	}
	ktap_value("count", "%d", COUNT);
	ktap_value("congruent-2m", "%u", congruent_2m);
	ktap_value("congruent-1g", "%u", congruent_1g);
	return mapped;
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	uint64_t offset = strtoull(hp_option(&options, "offset", "0"), NULL, 16);
	size_t length = strtoull(hp_option(&options, "length", "0"), NULL, 16);
	struct hp_bar bar = hp_bar_open(2);
	char *mapped = map_many(&bar, offset, length);

	ktap_plan(1);
	hp_bar_name("bar", mapped, length, PROT_READ | PROT_WRITE, offset);
	hp_read(mapped);
	hp_read((char *)(((uintptr_t)mapped + MIB(2) - 1) & ~(MIB(2) - 1)));
	hp_read(mapped + length - 8);
	checkpoint("touched");
	ktap_ok(true, "mapped where the kernel chose, and touched");
	return ktap_finish();
}
