// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a VMA or a process for which huge pages are disabled gets only 4K leaves; the setting for transparent huge
 * pages applies to a pfnmap if, and only if, the kernel itself says so in smaps (THPeligible).
 *
 * --case=nohugepage   small, more                  MADV_NOHUGEPAGE before the first touch
 * --case=part         large, parted, touched       MADV_NOHUGEPAGE for the first half of an existing leaf
 * --case=process      disabled, enabled            PR_SET_THP_DISABLE, and off again
 * --case=setting      touched                      transparent_hugepage/enabled: a VMA for each word
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "lib/hugepfn.h"

#define SETTING "/sys/kernel/mm/transparent_hugepage/enabled"

static char *map_as(const struct hp_bar *bar, enum hp_level level, const char *name)
{
	return hp_bar_map_area(bar, &(struct hp_bar_area){ .name = name,
							   .length = hp_leaf_size(level),
							   .align = hp_leaf_size(level),
							   .prot = PROT_READ | PROT_WRITE });
}

static void advise(void *addr, size_t length, int advice)
{
	if (madvise(addr, length, advice))
		hp_die("madvise %d", advice);
}

static void nohugepage(const struct hp_bar *bar, enum hp_level level)
{
	size_t length = hp_leaf_size(level);
	char *mapped = map_as(bar, level, "bar");

	advise(mapped, length, MADV_NOHUGEPAGE);
	ktap_value("faults", "%ld", hp_read_faults(mapped));
	checkpoint("small");
	hp_write(mapped + length - 8, 1);
	checkpoint("more");
	ktap_ok(true, "touched small");
}

static void part(const struct hp_bar *bar, enum hp_level level)
{
	size_t length = hp_leaf_size(level), half = length / 2;
	char *mapped = map_as(bar, level, "bar");

	hp_write(mapped, 1);
	checkpoint("large");
	advise(mapped, half, MADV_NOHUGEPAGE);
	hp_bar_name("bar", mapped, half, PROT_READ | PROT_WRITE, 0);
	hp_bar_name("bar-high", mapped + half, half, PROT_READ | PROT_WRITE, half);
	checkpoint("parted");
	hp_read(mapped);
	hp_read(mapped + half);
	checkpoint("touched");
	ktap_ok(true, "touched both parts");
}

static void process(const struct hp_bar *bar, enum hp_level level)
{
	char *mapped = map_as(bar, level, "bar");

	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		hp_die("PR_SET_THP_DISABLE");
	hp_read(mapped);
	checkpoint("disabled");
	if (prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0))
		hp_die("PR_SET_THP_DISABLE off");
	mapped = map_as(bar, level, "bar-after");
	hp_read(mapped);
	checkpoint("enabled");
	ktap_ok(true, "touched while disabled and after");
}

/* THPeligible in smaps of the VMA at ADDR; -1 if it is not there. */
static int thp_eligible(const void *addr)
{
	char line[512], start[32];
	bool here = false;
	int eligible = -1;
	FILE *smaps = fopen("/proc/self/smaps", "re");

	if (!smaps)
		hp_die("/proc/self/smaps");
	snprintf(start, sizeof(start), "%" PRIxPTR "-", (uintptr_t)addr);
	while (fgets(line, sizeof(line), smaps)) {
		if (!strncmp(line, start, strlen(start)))
			here = true;
		if (here && sscanf(line, "THPeligible: %d", &eligible) == 1)
			break;
	}
	fclose(smaps);
	return eligible;
}

static void choose(const char *word)
{
	int error = hp_write_file(SETTING, word);

	if (error == ENOENT)
		ktap_skip_all("this kernel has no " SETTING);
	errno = error;
	if (error)
		hp_die("%s to " SETTING, word);
}

/* smaps is read before the first touch: reading it zaps a pud. */
static void setting(const struct hp_bar *bar, enum hp_level level)
{
	static const struct {
		const char *name, *word;
		bool advised;
	} all[] = { { "always", "always", false },
		    { "advised", "madvise", true },
		    { "madvise", "madvise", false },
		    { "never", "never", false },
		    { "never-advised", "never", true } };
	char *mapped[5];

	for (size_t i = 0; i < 5; i++) {
		char name[64];

		choose(all[i].word);
		mapped[i] = map_as(bar, level, all[i].name);
		if (all[i].advised)
			advise(mapped[i], hp_leaf_size(level), MADV_HUGEPAGE);
		snprintf(name, sizeof(name), "%s-eligible", all[i].name);
		ktap_value(name, "%d", thp_eligible(mapped[i]));
	}
	for (size_t i = 0; i < 5; i++) {
		choose(all[i].word);
		hp_read(mapped[i]);
	}
	checkpoint("touched");
	ktap_ok(true, "touched under each setting");
}

static const struct policy {
	const char *name;
	void (*run)(const struct hp_bar *bar, enum hp_level level);
} cases[] = {
	{ "nohugepage", nohugepage },
	{ "part", part },
	{ "process", process },
	{ "setting", setting },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct policy *chosen = hp_choose(&options, "case", "", cases);
	struct hp_bar bar = hp_bar_open(2);

	ktap_plan(1);
	chosen->run(&bar, options.level);
	return ktap_finish();
}
