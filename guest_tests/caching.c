// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: one BAR has one memory type, whatever the size of the leaf, whatever happened to it, in every process.
 *
 * The BAR's first gigabyte is mapped three times at once, by a leaf of each level: "bar-pte", "bar-pmd" and
 * "bar-pud". Checkpoints, each with the three leaves: touched, readonly, none, writable, forked (and the child's).
 */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"

static const struct {
	const char *name;
	enum hp_level level;
} all[] = { { "bar-pte", HP_PTE }, { "bar-pmd", HP_PMD }, { "bar-pud", HP_PUD } };
static char *mapped[3];

static void protect(int prot)
{
	for (int i = 0; i < 3; i++) {
		if (mprotect(mapped[i], hp_leaf_size(all[i].level), prot))
			hp_die("mprotect of %s", all[i].name);
		hp_bar_name(all[i].name, mapped[i], hp_leaf_size(all[i].level), prot, 0);
	}
}

static _Noreturn void child_main(const struct hp_gate *go)
{
	hp_gate_wait(go);
	protect(PROT_READ);
	checkpoint("child-readonly");
	_exit(0);
}

int main(int argc, char **argv)
{
	struct hp_gate go;
	pid_t child;

	hp_start(argc, argv);
	struct hp_bar bar = hp_bar_open(2);

	ktap_plan(1);
	for (int i = 0; i < 3; i++) {
		size_t size = hp_leaf_size(all[i].level);

		mapped[i] = hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = all[i].name,
									 .length = size,
									 .align = size,
									 .prot = PROT_READ | PROT_WRITE });
		hp_read(mapped[i]);
	}
	checkpoint("touched");
	hp_write(mapped[1], 1);
	checkpoint("one-written");
	protect(PROT_READ);
	checkpoint("readonly");
	protect(PROT_NONE);
	checkpoint("none");
	protect(PROT_READ | PROT_WRITE);
	checkpoint("writable");

	hp_gate_init(&go);
	child = hp_fork("child");
	if (!child)
		child_main(&go);
	checkpoint("forked");
	hp_gate_open(&go);
	ktap_ok(hp_reap(child) == 0, "mapped at three levels, in parent and child");
	return ktap_finish();
}
