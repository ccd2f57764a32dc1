// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: fork() of the process that made a virtual machine leaves the virtual machine's tables alone, and only that
 * process may run it: KVM is bound to its memory.
 *
 * Mappings: "bar". The VM is "vm", with the slots "code" and "bar".
 * Checkpoints: written, forked, child-tried, child-written, exited, parent-written.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"

#define GPA GIB(1)

static _Noreturn void child_main(struct hp_vm *vm, uint64_t *mapped, const struct hp_gate *go)
{
	hp_gate_wait(go);
	ktap_value("child", "%s", hp_errno_name(hp_vm_run_again(vm)));
	checkpoint("child-tried");
	hp_write(mapped, 2);
	checkpoint("child-written");
	_exit(0);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	struct hp_vm *vm = hp_vm_open("vm");
	struct hp_gate go;
	pid_t child;

	ktap_plan(1);
	hp_gate_init(&go);
	hp_vm_slot(vm, &(struct hp_slot){ .name = "bar",
					  .gpa = GPA,
					  .addr = mapped,
					  .length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level),
					  .backing = HP_BAR });
	ktap_value("before", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 1)));
	checkpoint("written");
	child = hp_fork("child");
	if (!child)
		child_main(vm, mapped, &go);
	checkpoint("forked");
	hp_gate_open(&go);
	ktap_ok(hp_reap(child) == 0, "the child tried and exited");
	checkpoint("exited");
	ktap_value("after", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 3)));
	checkpoint("parent-written");
	return ktap_finish();
}
