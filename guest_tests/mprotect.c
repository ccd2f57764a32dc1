// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: mprotect() of a whole leaf changes its rights and nothing else: level, pfn, cache bits, accessed bit and
 * pte_dirty() stay, and the way back restores the entry. mprotect() of a part of a leaf leaves no leaf that spans both.
 *
 * Maps --leaves leaves of the level PROT_READ | PROT_WRITE and takes the --steps (separated by commas) in order. Each
 * has a checkpoint and, where it measures something, a value, both named as the step is:
 *   read@OFF write@OFF           the faults that it took; OFF in hexadecimal
 *   try-read@OFF try-write@OFF   SIGNAL CODE OFFSET
 *   none ro rw rx                mprotect() of everything; the errno
 *   part-none part-ro part-rw    mprotect() of --part=FROM-TO; the errno. The rest is "bar-before" and "bar-after"
 *   map-exec                     mmap() of the BAR with PROT_EXEC; the errno
 * With --memory=anon it maps anonymous memory instead, "memory", which at pmd may be a transparent huge page.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"

static struct hp_bar bar;
static char *mapped;
static bool anonymous;
static size_t length, part_from, part_to;

/* The part has a VMA of its own, as long as its rights differ from those of its neighbours. */
static void name_parts(int prot)
{
	bool apart = prot != (PROT_READ | PROT_WRITE);

	hp_unmap("bar");
	hp_unmap("bar-before");
	hp_unmap("bar-part");
	hp_unmap("bar-after");
	if (!apart) {
		hp_bar_name("bar", mapped, length, prot, 0);
		return;
	}
	if (part_from)
		hp_bar_name("bar-before", mapped, part_from, PROT_READ | PROT_WRITE, 0);
	hp_bar_name("bar-part", mapped + part_from, part_to - part_from, prot, part_from);
	if (part_to < length)
		hp_bar_name("bar-after", mapped + part_to, length - part_to, PROT_READ | PROT_WRITE, part_to);
}

static void protect_part(const char *step, char *where, int prot)
{
	int error = mprotect(mapped + part_from, part_to - part_from, prot) ? errno : 0;

	(void)where;
	ktap_value(step, "%s", hp_errno_name(error));
	if (!error)
		name_parts(prot);
}

static void name_all(int prot)
{
	if (!anonymous)
		return hp_bar_name("bar", mapped, length, prot, 0);
	hp_map(&(struct hp_mapping){ .name = "memory",
				     .addr = mapped,
				     .length = length,
				     .prot = prot,
				     .backing = HP_RAM,
				     .pagemap_pages = length / 4096 });
}

static void protect(const char *step, char *where, int prot)
{
	int error = mprotect(mapped, length, prot) ? errno : 0;

	(void)where;
	ktap_value(step, "%s", hp_errno_name(error));
	if (!error)
		name_all(prot);
}

static void map_anonymous(size_t leaf)
{
	mapped = mmap(hp_reserve(length, leaf), length, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (mapped == MAP_FAILED)
		hp_die("mmap");
	if (leaf > KIB(4) && madvise(mapped, length, MADV_HUGEPAGE))
		ktap_skip_all("madvise(MADV_HUGEPAGE): no transparent huge pages in this kernel");
	name_all(PROT_READ | PROT_WRITE);
}

static void map_exec(const char *step, char *where, int prot)
{
	void *addr = mmap(NULL, 4096, prot, MAP_SHARED, bar.device_fd, (off_t)bar.offset);

	(void)where;
	ktap_value(step, "%s", hp_errno_name(addr == MAP_FAILED ? errno : 0));
	if (addr != MAP_FAILED)
		munmap(addr, 4096);
}

static void say_caught(const char *step, struct hp_caught caught)
{
	ktap_value(step, "%s %d %tx", hp_signal_name(caught.signal), caught.code, (char *)caught.addr - mapped);
}

static void read_word(const char *step, char *where, int prot)
{
	(void)prot;
	ktap_value(step, "%ld", hp_read_faults(where));
}

static void write_word(const char *step, char *where, int prot)
{
	(void)prot;
	ktap_value(step, "%ld", hp_write_faults(where, 1));
}

static void try_read(const char *step, char *where, int prot)
{
	(void)prot;
	say_caught(step, hp_try_read(where, NULL));
}

static void try_write(const char *step, char *where, int prot)
{
	(void)prot;
	say_caught(step, hp_try_write(where, 1));
}

static const struct step {
	const char *name;
	void (*take)(const char *step, char *where, int prot);
	int prot;
} all_steps[] = {
	{ "read", read_word, 0 },
	{ "write", write_word, 0 },
	{ "try-read", try_read, 0 },
	{ "try-write", try_write, 0 },
	{ "none", protect, PROT_NONE },
	{ "ro", protect, PROT_READ },
	{ "rw", protect, PROT_READ | PROT_WRITE },
	{ "rx", protect, PROT_READ | PROT_EXEC },
	{ "part-none", protect_part, PROT_NONE },
	{ "part-ro", protect_part, PROT_READ },
	{ "part-rw", protect_part, PROT_READ | PROT_WRITE },
	{ "map-exec", map_exec, PROT_READ | PROT_EXEC },
};

static void take(const char *step)
{
	const char *at = strchr(step, '@');
	char name[32];
	const struct step *known;

	snprintf(name, sizeof(name), "%.*s", (int)strcspn(step, "@"), step);
	known = hp_pick("step ", name, all_steps);
	known->take(step, mapped + (at ? strtoull(at + 1, NULL, 16) : 0), known->prot);
	checkpoint(step);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	size_t leaf = hp_leaf_size(options.level);
	char *steps = strdup(hp_option(&options, "steps", ""));

	length = leaf * strtoul(hp_option(&options, "leaves", "1"), NULL, 16);
	if (sscanf(hp_option(&options, "part", "0-0"), "%zx-%zx", &part_from, &part_to) != 2 || part_to > length)
		hp_die("--part");
	anonymous = !strcmp(hp_option(&options, "memory", "bar"), "anon");
	if (anonymous) {
		map_anonymous(leaf);
	} else {
		bar = hp_bar_open(2);
		mapped = hp_bar_map_area(
			&bar, &(struct hp_bar_area){ .length = length, .align = leaf, .prot = PROT_READ | PROT_WRITE });
	}

	ktap_plan(1);
	for (char *step = strtok(steps, ","); step; step = strtok(NULL, ","))
		take(step);
	ktap_ok(true, "every step taken");
	free(steps);
	return ktap_finish();
}
