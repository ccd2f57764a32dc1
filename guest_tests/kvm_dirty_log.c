// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: while KVM logs which pages of a slot are written, its leaves are small and each catches the first write;
 * afterwards, they are as large as before.
 *
 * Mappings: "bar". The VM is "vm", with the slots "code" and "bar".
 * Checkpoints: written, logging, caught, fetched, off.
 */
#include <linux/kvm.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"

#define GPA GIB(1)

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_bar bar = hp_bar_open(2);
	struct hp_slot slot = { .name = "bar",
				.gpa = GPA,
				.addr = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE),
				.length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level),
				.backing = HP_BAR };
	struct hp_vm *vm = hp_vm_open("vm");

	ktap_plan(1);
	hp_vm_slot(vm, &slot);
	ktap_value("before", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 1)));
	checkpoint("written");
	slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
	hp_vm_slot(vm, &slot);
	checkpoint("logging");
	ktap_value("logged", "%s", hp_vm_ended(hp_vm_write(vm, GPA + KIB(8), 2)));
	checkpoint("caught");
	ktap_value("dirty-pages", "%zu", hp_vm_dirty_pages(vm, &slot));
	checkpoint("fetched");
	slot.flags = 0;
	hp_vm_slot(vm, &slot);
	ktap_value("after", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 3)));
	checkpoint("off");
	ktap_ok(true, "logged and not");
	return ktap_finish();
}
