// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which bits the CPU sets in an entry of the BAR. The child's entries are copied by fork(): no CPU has them in its TLB,
 * and fork() clears the accessed and dirty bits of a pte.
 *
 * Checkpoints, all of the child: copied, read, written
 */
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"

static _Noreturn void child_main(uint64_t *bar)
{
	checkpoint("copied");
	hp_read(bar);
	checkpoint("read");
	hp_write(bar, 0);
	checkpoint("written");
	_exit(0);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	pid_t child;

	ktap_plan(1);
	hp_read(mapped);
	child = hp_fork("child");
	if (!child)
		child_main(mapped);
	ktap_ok(hp_reap(child) == 0, "the child read and wrote");
	return ktap_finish();
}
