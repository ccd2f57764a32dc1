// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: two slots over one leaf have a nested leaf each, and munmap() takes both.
 *
 * Mappings: "bar". The VM is "vm", with the slots "code", "low" and "high".
 * Checkpoints: both, one (the slot "low" was removed), unmapped.
 */
#include <sys/mman.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"

#define LOW GIB(1)
#define HIGH GIB(2)

static void add(struct hp_vm *vm, const char *name, uint64_t gpa, void *mapped, size_t length)
{
	hp_vm_slot(vm, &(struct hp_slot){
			       .name = name, .gpa = gpa, .addr = mapped, .length = length, .backing = HP_BAR });
	ktap_value(name, "%s", hp_vm_ended(hp_vm_write(vm, gpa, 1)));
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	size_t length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level);
	struct hp_bar bar = hp_bar_open(2);
	void *mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	struct hp_vm *vm = hp_vm_open("vm");

	ktap_plan(1);
	add(vm, "low", LOW, mapped, length);
	add(vm, "high", HIGH, mapped, length);
	checkpoint("both");
	hp_vm_drop_slot(vm, "low");
	ktap_value("low-removed", "%s", hp_vm_ended(hp_vm_write(vm, LOW, 2)));
	ktap_value("high-again", "%s", hp_vm_ended(hp_vm_write(vm, HIGH, 2)));
	checkpoint("one");
	add(vm, "low", LOW, mapped, length);
	if (munmap(mapped, length))
		hp_die("munmap");
	hp_unmap("bar");
	checkpoint("unmapped");
	ktap_ok(true, "written through both slots");
	return ktap_finish();
}
