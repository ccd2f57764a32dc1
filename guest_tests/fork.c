// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: fork() copies the leaf of a shared pfnmap. Parent and child may both write, no dirty bit moves to a
 * software bit, and no entry is ever write=0 && dirty=1.
 *
 * Checkpoints, each of which shows every living process:
 *   read, written, forked, child-written, parent-written, grandchild-forked, grandchild-written, exited
 */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"

static _Noreturn void grandchild_main(uint64_t *bar, const struct hp_gate *go)
{
	hp_gate_wait(go);
	ktap_value("grandchild-write-faults", "%ld", hp_write_faults(bar, 3));
	checkpoint("grandchild-written");
	_exit(0);
}

static _Noreturn void child_main(uint64_t *bar, const struct hp_gate *go)
{
	pid_t grandchild;

	hp_gate_wait(go);
	ktap_value("child-write-faults", "%ld", hp_write_faults(bar, 2));
	checkpoint("child-written");
	hp_gate_open(go + 1);

	hp_gate_wait(go);
	grandchild = hp_fork("grandchild");
	if (!grandchild)
		grandchild_main(bar, go + 1);
	checkpoint("grandchild-forked");
	hp_gate_open(go + 1);
	_exit(hp_reap(grandchild) ? 1 : 0);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_gate go[2];
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	pid_t child;

	ktap_plan(1);
	hp_gate_init(&go[0]);
	hp_gate_init(&go[1]);

	hp_read(mapped);
	checkpoint("read");
	hp_write(mapped, 1);
	checkpoint("written");

	child = hp_fork("child");
	if (!child)
		child_main(mapped, go);
	checkpoint("forked");

	hp_gate_open(&go[0]);
	hp_gate_wait(&go[1]);
	ktap_value("parent-write-faults", "%ld", hp_write_faults(mapped, 4));
	checkpoint("parent-written");

	hp_gate_open(&go[0]);
	ktap_ok(hp_reap(child) == 0, "child and grandchild wrote and exited");
	checkpoint("exited");
	return ktap_finish();
}
