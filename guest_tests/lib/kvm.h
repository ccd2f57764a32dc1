/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A virtual machine of the guest's own KVM: one vCPU, slots of memory, and a few bytes of code that read or write.
 *
 * The host walks the nested tables of each VM at every checkpoint. What KVM itself counts (KVM_GET_STATS_FD: how many
 * leaves of each size) is told to the host with the checkpoint, and must agree with the walk.
 */
#ifndef HUGEPFN_KVM_H
#define HUGEPFN_KVM_H

#include "hugepfn.h"

#define HP_SLOTS 16

struct hp_vm {
	const char *name;
	int vm_fd, vcpu_fd, stats_fd;
	struct kvm_run *run;
	const char *slots[HP_SLOTS]; /* the name of each; NULL: free */
};

/*
 * Makes a VM with one vCPU, which the host knows by NAME, and whose memory is only the page of its code (slot "code" at
 * guest-physical 0x1000). Skips the run if this kernel has no KVM or the machine's CPU cannot run it. It is the calling
 * process's: no other one can use it, since KVM is bound to the memory of the process that made it.
 */
struct hp_vm *hp_vm_open(const char *name);

/* Closes everything, and tells the host that the VM is gone. */
void hp_vm_close(struct hp_vm *vm);

/* Guest-physical memory of a VM: a part of the calling process's memory. */
struct hp_slot {
	const char *name;
	uint64_t gpa;            /* below 4 GiB */
	void *addr;
	size_t length;
	uint32_t flags;          /* KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY */
	enum hp_backing backing; /* what ADDR is a mapping of, as in struct hp_mapping */
	uint64_t file_offset;
	const char *region;      /* which BAR; NULL: "bar" */
};

/* Adds a slot, or changes the flags of the one of that name (KVM_SET_USER_MEMORY_REGION). */
void hp_vm_slot(struct hp_vm *vm, const struct hp_slot *slot);

/* Removes it. */
void hp_vm_drop_slot(struct hp_vm *vm, const char *name);

/* Fetches and clears a slot's log of dirty pages (KVM_GET_DIRTY_LOG); returns how many there were. */
size_t hp_vm_dirty_pages(struct hp_vm *vm, const struct hp_slot *slot);

/* How an access of the vCPU ended. */
struct hp_vm_exit {
	unsigned int reason; /* KVM_EXIT_*: KVM_EXIT_HLT if it was done */
	int error;           /* of KVM_RUN; 0 for none */
	uint32_t value;      /* what was read */
};

/* The vCPU loads (stores) the 32-bit word at a guest-physical address below 4 GiB. */
struct hp_vm_exit hp_vm_read(struct hp_vm *vm, uint64_t gpa);
struct hp_vm_exit hp_vm_write(struct hp_vm *vm, uint64_t gpa, uint32_t value);

#define HP_VM_PORT 0x10 /* to which the code at HP_VM_LOOP writes once each round */

/* Where a piece of the vCPU's code starts, in the page "code". */
enum hp_vm_code { HP_VM_LOAD = 0, HP_VM_STORE = 16, HP_VM_LOOP = 32 };

/* KVM_RUN from the start of a piece of code, with a guest-physical address below 4 GiB and a value for it. */
struct hp_vm_exit hp_vm_enter(struct hp_vm *vm, enum hp_vm_code code, uint64_t gpa, uint32_t value);

/* KVM_RUN alone, from wherever the vCPU is: returns the error number, 0 for none. Any process may try. */
int hp_vm_run_again(struct hp_vm *vm);

/* "done"; "MMIO" if no memory, or no writable memory, is there; the error's name; or "exit NUMBER". */
const char *hp_vm_ended(struct hp_vm_exit how);

#endif
