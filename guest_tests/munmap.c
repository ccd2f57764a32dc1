// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: munmap() removes what it was asked to remove and nothing else. No entry is left in the hole, no entry of
 * the rest reaches into it, another process keeps what it has; the rest stays usable, at the largest level that fits.
 *
 * --case=start|middle|end  one page of sixteen, one page of a 2M leaf, 2M of a 1G leaf
 * --case=page              one page of a 1G leaf
 * --case=across            eight pages, of two leaves that are neighbours (at pte: of two page tables)
 * --case=whole             everything
 * --case=over              2M or a page in the middle, by mmap(MAP_FIXED) of another part of the BAR over it
 * --case=remap             the same by remap_file_pages()
 * --lock=1                 mlock()s the mapping first
 * --child=1                fork()s a child first, which keeps all of it and writes into the place of the parent's hole
 *
 * Mappings: "bar" before; then "low" and "high", what is left, "hole", where nothing may be, "over", what replaces it.
 * Checkpoints: read, written, unmapped, child-written (with a child), refaulted, gone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define PAGE 4096
#define RIGHTS (PROT_READ | PROT_WRITE)

struct span {
	size_t start, end; /* bytes from the start of the mapping */
};

struct plan {
	size_t length, skew;
	struct span hole;
};

/* A place in the mapping, the sum of: halves of it, leaves of the next smaller size (at pte: pages), pages. */
struct place {
	long halves, leaves, pages;
};

static const struct munmap {
	const char *name;
	struct place from, to; /* the hole */
	bool across;           /* from one leaf into the next; at pte, from one table into the next */
	bool over, remap;      /* another part of the BAR goes into the hole: by mmap(), by remap_file_pages() */
} cases[] = {
	{ .name = "start", .from = { 0, 0, 0 }, .to = { 0, 1, 0 } },
	{ .name = "middle", .from = { 1, 0, 0 }, .to = { 1, 1, 0 } },
	{ .name = "end", .from = { 2, -1, 0 }, .to = { 2, 0, 0 } },
	{ .name = "whole", .from = { 0, 0, 0 }, .to = { 2, 0, 0 } },
	{ .name = "page", .from = { 1, 0, 5 }, .to = { 1, 0, 6 } },
	{ .name = "across", .from = { 1, 0, -5 }, .to = { 1, 0, 3 }, .across = true },
	{ .name = "over", .from = { 1, 0, 0 }, .to = { 1, 1, 0 }, .over = true },
	{ .name = "remap", .from = { 1, 0, 0 }, .to = { 1, 1, 0 }, .over = true, .remap = true },
};

static struct plan make_plan(enum hp_level level, const struct munmap *chosen)
{
	long leaf = hp_leaf_size(level), smaller = level == HP_PTE ? PAGE : leaf / 512;
	long half = level == HP_PTE ? 8 * PAGE : chosen->across ? leaf : leaf / 2;
	const struct place *from = &chosen->from, *to = &chosen->to;

	return (struct plan){ .length = 2 * half,
			      .skew = chosen->across && level == HP_PTE ? MIB(2) - half : 0,
			      .hole = { from->halves * half + from->leaves * smaller + from->pages * PAGE,
					to->halves * half + to->leaves * smaller + to->pages * PAGE } };
}

/* The first and the last page of a span; none of an empty one. */
static void touch(char *base, struct span span, void (*access)(char *at))
{
	if (span.start < span.end) {
		access(base + span.start);
		access(base + span.end - PAGE);
	}
}

static void write_at(char *at)
{
	hp_write(at, 1);
}

static void read_at(char *at)
{
	hp_read(at);
}

static void refused_at(const char *when, char *at)
{
	struct hp_caught caught = hp_try_read(at, NULL);
	char name[64];

	snprintf(name, sizeof(name), "hole-%s", when);
	ktap_value(name, "%s code %d %s", hp_signal_name(caught.signal), caught.code,
		   caught.addr == at ? "there" : "elsewhere");
}

static void name_rest(const struct plan *plan, char *base)
{
	if (plan->hole.start)
		hp_bar_name("low", base, plan->hole.start, RIGHTS, 0);
	if (plan->hole.end < plan->length)
		hp_bar_name("high", base + plan->hole.end, plan->length - plan->hole.end, RIGHTS, plan->hole.end);
}

static _Noreturn void child_main(char *at, const struct hp_gate *go)
{
	hp_gate_wait(go);
	ktap_value("child-write-faults", "%ld", hp_write_faults(at, 2));
	checkpoint("child-written");
	_exit(0);
}

/* Another part of the BAR where the hole would be: one that is congruent, so that the largest leaf fits. */
static void map_over(const struct hp_bar *bar, char *base, const struct plan *plan, bool remap)
{
	size_t length = plan->hole.end - plan->hole.start;
	uint64_t offset = plan->hole.start + plan->length;

	if (offset + length > bar->size)
		ktap_skip_all("the BAR ends at %llu", (unsigned long long)bar->size);
	if (remap ? remap_file_pages(base + plan->hole.start, length, 0, (bar->offset + offset) / PAGE, 0) :
		    mmap(base + plan->hole.start, length, RIGHTS, MAP_SHARED | MAP_FIXED, bar->device_fd,
			 (off_t)(bar->offset + offset)) == MAP_FAILED)
		hp_die("another part of the BAR in the middle");
	hp_bar_name("over", base + plan->hole.start, length, RIGHTS, offset);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct munmap *chosen = hp_choose(&options, "case", "whole", cases);
	struct plan plan = make_plan(options.level, chosen);
	struct hp_bar bar = hp_bar_open(2);
	struct hp_gate go;
	long before = (hp_page_table_kib(0), hp_page_table_kib(0)); /* the first faults in what it uses itself */
	char *base = hp_bar_map_area(&bar, &(struct hp_bar_area){ .length = plan.length,
								  .align = hp_leaf_size(options.level),
								  .skew = plan.skew,
								  .prot = RIGHTS });
	struct span low = { 0, plan.hole.start }, high = { plan.hole.end, plan.length };
	pid_t child = 0;

	ktap_plan(1);
	hp_gate_init(&go);
	if (atoi(hp_option(&options, "lock", "0")) && mlock(base, plan.length))
		hp_die("mlock");
	touch(base, low, read_at);
	touch(base, plan.hole, read_at);
	touch(base, high, read_at);
	checkpoint("read");
	touch(base, low, write_at);
	touch(base, plan.hole, write_at);
	touch(base, high, write_at);
	checkpoint("written");

	if (atoi(hp_option(&options, "child", "0"))) {
		child = hp_fork("child");
		if (!child)
			child_main(base + plan.hole.start, &go);
	}
	if (chosen->over)
		map_over(&bar, base, &plan, chosen->remap);
	else if (munmap(base + plan.hole.start, plan.hole.end - plan.hole.start))
		hp_die("munmap");
	if (!chosen->over) { /* at once: a stale TLB entry would not last long */
		refused_at("first", base + plan.hole.start);
		refused_at("last", base + plan.hole.end - PAGE);
	}
	hp_unmap("bar");
	name_rest(&plan, base);
	if (!chosen->over) /* no entry may be there: no rights, and the pfn does not matter */
		hp_bar_name("hole", base + plan.hole.start, plan.hole.end - plan.hole.start, PROT_NONE, plan.hole.start);
	checkpoint("unmapped");
	if (child) {
		hp_gate_open(&go);
		if (hp_reap(child))
			hp_die("the child failed");
	}
	touch(base, low, read_at);
	touch(base, high, read_at);
	if (chosen->over)
		touch(base, plan.hole, read_at);
	checkpoint("refaulted");

	ktap_ok(munmap(base, plan.length) == 0, "what was left is unmapped");
	hp_unmap("low");
	hp_unmap("high");
	hp_unmap("over");
	hp_bar_name("hole", base, plan.length, PROT_NONE, 0);
	ktap_value("table-kib-left", "%ld", hp_page_table_kib(0) - before);
	checkpoint("gone");
	return ktap_finish();
}
