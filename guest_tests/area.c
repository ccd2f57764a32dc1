// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a fault maps the largest leaf that contains the address, lies within the VMA and has a physical address
 * congruent with its virtual one; never a larger one, and never a smaller one.
 *
 * Maps --length bytes of the BAR from --offset, at an address that is --skew above a multiple of --align, reads one
 * word at each of --touch (offsets in the mapping, separated by commas) and counts the faults that each took. All
 * numbers are hexadecimal.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"

static size_t number(const struct hp_options *options, const char *name)
{
	return strtoull(hp_option(options, name, "0"), NULL, 16);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const char *touch = hp_option(&options, "touch", "");
	struct hp_bar bar = hp_bar_open(2);
	struct hp_bar_area area = { .offset = number(&options, "offset"),
				    .length = number(&options, "length"),
				    .align = number(&options, "align"),
				    .skew = number(&options, "skew"),
				    .prot = PROT_READ | PROT_WRITE };
	char *mapped = hp_bar_map_area(&bar, &area);

	ktap_plan(1);
	checkpoint("mapped");
	while (*touch) {
		char *end, name[64];
		size_t at = strtoull(touch, &end, 16);

		if (end == touch || at >= area.length) {
			errno = EINVAL;
			hp_die("--touch=...%s", touch);
		}
		snprintf(name, sizeof(name), "faults-%zx", at);
		ktap_value(name, "%ld", hp_read_faults(mapped + at));
		touch = *end == ',' ? end + 1 : end;
	}
	checkpoint("touched");
	ktap_ok(true, "touched");
	return ktap_finish();
}
