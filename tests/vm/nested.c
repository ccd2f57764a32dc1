// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two virtual machines, of which "vm" has more leaves than "other". --case=lie tells the counts of "other" for "vm".
 * Checkpoint: seen.
 */
#include <string.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"

#define GPA GIB(1)

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_bar bar = hp_bar_open(2);
	void *mapped = hp_bar_map(&bar, HP_PMD, PROT_READ | PROT_WRITE);
	struct hp_vm *vm = hp_vm_open("vm"), *other = hp_vm_open("other");

	ktap_plan(2);
	hp_vm_slot(vm, &(struct hp_slot){
			       .name = "bar", .gpa = GPA, .addr = mapped, .length = MIB(2), .backing = HP_BAR });
	ktap_ok(!strcmp(hp_vm_ended(hp_vm_write(vm, GPA, 1)), "done"), "a write into the BAR");
	ktap_ok(!strcmp(hp_vm_ended(hp_vm_write(other, GPA, 1)), "MMIO"), "a write where there is no slot");
	if (!strcmp(hp_option(&options, "case", ""), "lie"))
		vm->stats_fd = other->stats_fd;
	checkpoint("seen");
	hp_vm_close(other);
	checkpoint("one-left");
	return ktap_finish();
}
