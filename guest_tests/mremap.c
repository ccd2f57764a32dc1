// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: mremap() moves a mapping's entries along, or zaps them so that the next access faults in new ones: nothing
 * stays at the old address, no right is gained, no dirty bit of a moved entry is lost, another process keeps its own.
 *
 * --case=leaf       one leaf to an address that has the same offset in a leaf of its level
 * --case=table      a whole page table of such leaves (1 GiB of 2M leaves, 2 MiB of pages) to an aligned address
 * --case=less       one leaf to an address that is congruent modulo the next lower level only
 * --case=page       one leaf to an address that is congruent modulo 4 KiB only
 * --case=readonly   as leaf, after a write and mprotect(PROT_READ)
 * --case=over       as leaf, to where another part of the BAR is mapped and written
 * --case=part       the middle of one leaf (2M of a 1G leaf, a page of a 2M leaf or of sixteen pages)
 * --case=shrink     the last eighth is cut off in place
 * --child=1         fork()s a child before the move
 * --case=refused    what has to be refused, each with its errno
 *
 * Mappings: "bar" before, "target" where something is in the way; then "moved", "old", where nothing may be, and of a
 * part also "low" and "high", what stayed. The old address is accessed right after mremap(): a stale TLB entry would
 * not last long.
 *
 * Checkpoints: written, (readonly), (target), (forked), moved, (child-written), used, (back).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define PAGE 4096
#define RIGHTS (PROT_READ | PROT_WRITE)

struct place {
	size_t length, align;     /* of the mapping */
	size_t first, moved;      /* of what moves: offset in the mapping, length */
	size_t to_align, to_skew; /* of where it goes */
};

static void note_refusal(const char *what, void *result)
{
	ktap_value(what, "%s", result == MAP_FAILED ? hp_errno_name(errno) : "0");
}

static int refused(char *base, size_t length)
{
	char *to_nowhere = base + 2 * length + 1;

	note_refusal("grow", mremap(base, length, length + PAGE, 0));
	checkpoint("grow");
	note_refusal("grow-maymove", mremap(base, length, length + PAGE, MREMAP_MAYMOVE));
	checkpoint("grow-maymove");
	note_refusal("dontunmap", mremap(base, length, length, MREMAP_MAYMOVE | MREMAP_DONTUNMAP));
	checkpoint("dontunmap");
	note_refusal("duplicate", mremap(base, 0, length, MREMAP_MAYMOVE));
	checkpoint("duplicate");
	note_refusal("onto-itself", mremap(base, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, base));
	checkpoint("onto-itself");
	note_refusal("odd-address", mremap(base, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to_nowhere));
	checkpoint("odd-address");
	ktap_value("write-faults", "%ld", hp_write_faults(base, 2));
	ktap_ok(true, "still writable");
	return ktap_finish();
}

static int shrink(char *base, size_t length)
{
	size_t left = length - length / 8;

	hp_try_read(base + left, NULL); /* the TLB has the address when it goes */
	if (mremap(base, length, left, 0) != base)
		hp_die("mremap to fewer bytes");
	ktap_value("old-read", "%s", hp_signal_name(hp_try_read(base + left, NULL).signal));
	hp_unmap("bar");
	hp_bar_name("moved", base, left, RIGHTS, 0);
	hp_bar_name("old", base + left, length - left, PROT_NONE, left);
	checkpoint("moved");
	hp_read(base);
	hp_read(base + left - PAGE);
	checkpoint("used");
	ktap_ok(true, "what is left can be read");
	return ktap_finish();
}

static const struct mremap {
	const char *name;
	int (*instead)(char *base, size_t length); /* of a move to another address */
	bool table;                                /* as many leaves as fill a table */
	bool part;                                 /* only a part in the middle of the leaf moves */
	bool readonly;                             /* when it moves */
	bool over;                                 /* another mapping is where it goes */
	size_t skew_units, skew_pages;             /* where it goes: the distance from an aligned address */
} cases[] = {
	{ .name = "leaf" },
	{ .name = "table", .table = true },
	{ .name = "less", .skew_units = 1 },
	{ .name = "page", .skew_pages = 3 },
	{ .name = "part", .part = true },
	{ .name = "readonly", .readonly = true },
	{ .name = "over", .over = true },
	{ .name = "refused", .instead = refused },
	{ .name = "shrink", .instead = shrink },
};

static struct place make_place(enum hp_level level, const struct mremap *chosen)
{
	size_t leaf = hp_leaf_size(level), unit = level == HP_PTE ? PAGE : leaf / 512;
	struct place place = { .length = level == HP_PTE ? 16 * PAGE : leaf, .align = leaf, .to_align = leaf };

	if (chosen->table) {
		if (level == HP_PUD)
			ktap_skip_all("512 GiB of BAR would be needed for a table of 1G leaves");
		place.length = place.align = place.to_align = 512 * leaf;
	}
	place.to_skew = chosen->skew_units * unit + chosen->skew_pages * PAGE;
	place.moved = place.length;
	if (chosen->part) {
		place.first = place.length / 2;
		place.moved = place.to_align = unit;
	}
	return place;
}

static char *target(const struct place *place)
{
	size_t align = place->to_align > MIB(2) ? place->to_align : MIB(2);

	return (char *)hp_reserve(align + place->to_skew + place->moved + MIB(2), align) + align + place->to_skew;
}

static void name_moved(const struct place *place, char *base, char *to, int prot, uint64_t offset)
{
	size_t end = place->first + place->moved;

	hp_unmap("bar");
	hp_unmap("target");
	hp_bar_name("moved", to, place->moved, prot, offset + place->first);
	hp_bar_name("old", base + place->first, place->moved, PROT_NONE, offset + place->first);
	if (place->first)
		hp_bar_name("low", base, place->first, prot, offset);
	if (end < place->length)
		hp_bar_name("high", base + end, place->length - end, prot, offset + end);
}

static _Noreturn void child_main(char *at, const struct hp_gate *go)
{
	hp_gate_wait(go);
	ktap_value("child-write-faults", "%ld", hp_write_faults(at, 2));
	checkpoint("child-written");
	_exit(0);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct mremap *chosen = hp_choose(&options, "case", "leaf", cases);
	struct place place = make_place(options.level, chosen);
	struct hp_bar bar = hp_bar_open(2);
	/* A table of 2M leaves needs an offset at which no 1G leaf fits; a table of pages, a VMA without huge ones. */
	uint64_t offset = options.level == HP_PMD && chosen->table ? MIB(2) : 0;
	char *base = hp_bar_map_area(&bar, &(struct hp_bar_area){ .offset = offset,
								  .length = place.length,
								  .align = place.align,
								  .prot = RIGHTS });
	char *to;
	struct hp_gate go;
	int prot = RIGHTS;
	pid_t child = 0;

	ktap_plan(1);
	hp_gate_init(&go);
	if (chosen->table && options.level == HP_PTE && madvise(base, place.length, MADV_NOHUGEPAGE))
		hp_die("MADV_NOHUGEPAGE");
	hp_write(base, 1);
	hp_write(base + place.first, 1);
	hp_write(base + place.length - PAGE, 1);
	checkpoint("written");
	if (chosen->instead)
		return chosen->instead(base, place.length);
	if (chosen->readonly) {
		prot = PROT_READ;
		if (mprotect(base, place.length, prot))
			hp_die("mprotect");
		hp_bar_name("bar", base, place.length, prot, offset);
		checkpoint("readonly");
	}
	if (chosen->over) {
		to = hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = "target",
								  .offset = place.length,
								  .length = place.length,
								  .align = place.to_align,
								  .prot = RIGHTS });
		hp_write(to, 1);
		checkpoint("target");
	} else
		to = target(&place);
	if (atoi(hp_option(&options, "child", "0"))) {
		child = hp_fork("child");
		if (!child)
			child_main(base, &go);
		checkpoint("forked");
	}

	hp_try_read(base + place.first, NULL); /* the TLB has the address when it goes */
	if (mremap(base + place.first, place.moved, place.moved, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		hp_die("mremap");
	ktap_value("old-read", "%s", hp_signal_name(hp_try_read(base + place.first, NULL).signal));
	name_moved(&place, base, to, prot, offset);
	checkpoint("moved");
	if (child) {
		hp_gate_open(&go);
		if (hp_reap(child))
			hp_die("the child failed");
	}
	ktap_value("moved-faults", "%ld", hp_read_faults(to));
	hp_read(to + place.moved - PAGE);
	if (place.moved < place.length) {
		hp_read(base);
		hp_read(base + place.length - PAGE);
	}
	if (prot == PROT_READ)
		ktap_value("readonly-write", "%s", hp_signal_name(hp_try_write(to, 2).signal));
	checkpoint("used");
	if (prot == PROT_READ) {
		if (mprotect(to, place.moved, RIGHTS))
			hp_die("mprotect back");
		hp_bar_name("moved", to, place.moved, RIGHTS, offset + place.first);
		checkpoint("back");
	}
	hp_write(to, 3);
	ktap_ok(true, "the moved mapping can be written");
	return ktap_finish();
}
