// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: KVM maps a leaf of a BAR into a virtual machine as large as the host's leaf, if guest-physical address,
 * length and pfn allow it, and with the rights of the host's mapping.
 *
 * --case=whole     a slot over the whole leaf, aligned as the leaf is; the vCPU reads, then writes
 * --case=first     the same, but the vCPU's write is the first access of all: the host's entry is made for it
 * --case=skewed    the slot's address is off by a leaf of the next smaller size
 * --case=short     the slot ends a leaf of the next smaller size before the mapping does
 * --case=read-only the host's mapping has only PROT_READ, the slot KVM_MEM_READONLY
 * --case=read-only-mapping the same, but the slot may be written
 * --case=soft-dirty as first, after clear_refs 4: the host's entry may be made read-only, to see the next write
 *
 * Mappings: "bar". The VM is "vm", with the slots "code" and "bar".
 * Checkpoints: opened, read (not with first and soft-dirty), written.
 */
#include <linux/kvm.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"
#include "lib/tracking.h"

#define GPA GIB(1)

static const struct kvm_case {
	const char *name;
	int skew, shorter; /* in leaves of the next smaller size */
	bool first, read_only, soft_dirty;
	uint32_t flags; /* of the slot */
} cases[] = {
	{ .name = "whole" },
	{ .name = "first", .first = true },
	{ .name = "skewed", .skew = 1 },
	{ .name = "short", .shorter = 1 },
	{ .name = "read-only", .read_only = true, .flags = KVM_MEM_READONLY },
	{ .name = "read-only-mapping", .read_only = true },
	{ .name = "soft-dirty", .first = true, .soft_dirty = true },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct kvm_case *chosen = hp_choose(&options, "case", "whole", cases);
	size_t leaf = hp_leaf_size(options.level), smaller = options.level == HP_PTE ? leaf : leaf / 512;
	size_t length = options.level == HP_PTE ? 4 * leaf : leaf;
	uint64_t gpa = GPA + (size_t)chosen->skew * smaller;
	struct hp_bar bar = hp_bar_open(2);
	char *mapped = hp_bar_map(&bar, options.level, chosen->read_only ? PROT_READ : PROT_READ | PROT_WRITE);
	struct hp_vm *vm = hp_vm_open("vm");

	ktap_plan(1);
	if (chosen->soft_dirty)
		hp_clear_refs(getpid(), "4");
	if (!chosen->first)
		hp_read(mapped);
	hp_vm_slot(vm, &(struct hp_slot){ .name = "bar",
					  .gpa = gpa,
					  .addr = mapped,
					  .length = length - (size_t)chosen->shorter * smaller,
					  .flags = chosen->flags,
					  .backing = HP_BAR });
	checkpoint("opened");
	if (!chosen->first) {
		ktap_value("read", "%s", hp_vm_ended(hp_vm_read(vm, gpa)));
		checkpoint("read");
	}
	ktap_value("write", "%s", hp_vm_ended(hp_vm_write(vm, gpa, 0x12345678)));
	checkpoint("written");
	ktap_ok(true, "the vCPU's accesses ended");
	return ktap_finish();
}
