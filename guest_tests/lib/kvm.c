// SPDX-License-Identifier: GPL-2.0-only
/* A virtual machine of the guest's own KVM (Documentation/virt/kvm/api.rst). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm.h"
#include "shared.h"

#define CODE_GPA 0x1000
#define VMS 8

static const char load[] = { '\x8b', '\x07', '\xf4' };  /* mov eax, [edi]; hlt */
static const char store[] = { '\x89', '\x07', '\xf4' }; /* mov [edi], eax; hlt */
static const char loop[] = {                            /* again: mov eax, [edi]; mov [edi], eax; out PORT, al; jmp again */
	'\x8b', '\x07', '\x89', '\x07', '\xe6', HP_VM_PORT, '\xeb', '\xf8'
};

/* What KVM counts for a VM: leaves of each size. */
static const char *const counted[] = { "pages_4k", "pages_2m", "pages_1g" };
#define COUNTED (sizeof(counted) / sizeof(*counted))

static struct known_vm {
	struct hp_vm vm;
	pid_t owner; /* 0: free */
	off_t at[COUNTED]; /* where each count is in stats_fd */
} vms[VMS];

static bool cpu_has(const char *flag)
{
	FILE *file = fopen("/proc/cpuinfo", "re");
	char line[4096], *word, *save;
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "flags", 5))
			continue;
		for (word = strtok_r(line, " \t\n", &save); word && !found; word = strtok_r(NULL, " \t\n", &save))
			found = !strcmp(word, flag);
		break;
	}
	if (file)
		fclose(file);
	return found;
}

static int open_kvm(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	if (errno != ENOENT && errno != ENODEV)
		hp_die("open /dev/kvm");
	if (!cpu_has("svm") && !cpu_has("vmx"))
		ktap_skip_all("no KVM in this machine: its CPU has neither svm nor vmx (QEMU under KVM needs a host with "
			      "nested=1, QEMU's TCG a CPU model with svm=on)");
	ktap_skip_all("no KVM in this machine: there is no /dev/kvm (was the machine started with --nested, and does the "
		      "kernel have KVM?)");
}

static void find_counts(struct known_vm *known)
{
	struct kvm_stats_header header;
	int fd = known->vm.stats_fd;
	size_t size;
	char *text;

	if (pread(fd, &header, sizeof(header), 0) != sizeof(header))
		hp_die("header of KVM_GET_STATS_FD");
	size = sizeof(struct kvm_stats_desc) + header.name_size;
	text = malloc(size);
	if (!text)
		hp_die("malloc");
	memset(known->at, 0, sizeof(known->at));
	for (uint32_t i = 0; i < header.num_desc; i++) {
		const struct kvm_stats_desc *desc = (const struct kvm_stats_desc *)text;

		if (pread(fd, text, size, (off_t)(header.desc_offset + i * size)) != (ssize_t)size)
			hp_die("descriptor %u of KVM_GET_STATS_FD", i);
		for (size_t j = 0; j < COUNTED; j++)
			if (!strcmp(desc->name, counted[j]))
				known->at[j] = (off_t)header.data_offset + desc->offset;
	}
	free(text);
	for (size_t j = 0; j < COUNTED; j++)
		if (!known->at[j])
			ktap_skip_all("this kernel's KVM does not count %s", counted[j]);
}

/* 32-bit protected mode without paging, in flat segments: an address of the vCPU is a guest-physical one. */
static void set_mode(const struct hp_vm *vm)
{
	struct kvm_segment flat = { .limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_sregs sregs;

	if (ioctl(vm->vcpu_fd, KVM_GET_SREGS, &sregs))
		hp_die("KVM_GET_SREGS");
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
	flat.type = 11;
	sregs.cs = flat;
	sregs.cr0 = 0x11; /* PE, ET */
	if (ioctl(vm->vcpu_fd, KVM_SET_SREGS, &sregs))
		hp_die("KVM_SET_SREGS");
}

static void add_code(struct hp_vm *vm)
{
	char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (code == MAP_FAILED)
		hp_die("mmap of the code");
	memcpy(code + HP_VM_LOAD, load, sizeof(load));
	memcpy(code + HP_VM_STORE, store, sizeof(store));
	memcpy(code + HP_VM_LOOP, loop, sizeof(loop));
	hp_vm_slot(vm, &(struct hp_slot){
			       .name = "code", .gpa = CODE_GPA, .addr = code, .length = 4096, .backing = HP_RAM });
}

struct hp_vm *hp_vm_open(const char *name)
{
	struct known_vm *known = NULL;
	int kvm = open_kvm(), run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct hp_vm *vm;

	check_name(name);
	for (int i = 0; i < VMS && !known; i++)
		if (!vms[i].owner)
			known = &vms[i];
	if (!known) {
		errno = ENOSPC;
		hp_die("more than %d VMs", VMS);
	}
	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD) <= 0)
		ktap_skip_all("this kernel's KVM has no KVM_GET_STATS_FD, so nothing can be held against the walk");
	vm = &known->vm;
	*vm = (struct hp_vm){ .name = name, .vm_fd = ioctl(kvm, KVM_CREATE_VM, 0) };
	if (vm->vm_fd < 0)
		hp_die("KVM_CREATE_VM");
	vm->vcpu_fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, 0);
	if (vm->vcpu_fd < 0)
		hp_die("KVM_CREATE_VCPU");
	vm->stats_fd = ioctl(vm->vm_fd, KVM_GET_STATS_FD, 0);
	if (vm->stats_fd < 0)
		hp_die("KVM_GET_STATS_FD");
	vm->run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu_fd, 0);
	if (run_size < 0 || vm->run == MAP_FAILED)
		hp_die("mmap of struct kvm_run");
	close(kvm);
	find_counts(known);
	known->owner = getpid();
	set_mode(vm);
	tell("vm %s %d %d %d\n", name, getpid(), vm->vm_fd, vm->vcpu_fd);
	add_code(vm);
	return vm;
}

void hp_vm_close(struct hp_vm *vm)
{
	close(vm->stats_fd);
	close(vm->vcpu_fd);
	close(vm->vm_fd);
	for (int i = 0; i < VMS; i++)
		if (&vms[i].vm == vm) {
			tell("vm-gone %s %d\n", vm->name, vms[i].owner);
			vms[i].owner = 0;
		}
}

/* The number of the slot of that name, or of a free one. */
static int number_of(const struct hp_vm *vm, const char *name)
{
	int found = -1;

	for (int i = HP_SLOTS - 1; i >= 0; i--) {
		if (vm->slots[i] && !strcmp(vm->slots[i], name))
			return i;
		if (!vm->slots[i])
			found = i;
	}
	if (found < 0) {
		errno = ENOSPC;
		hp_die("more than %d slots", HP_SLOTS);
	}
	return found;
}

static void set_region(const struct hp_vm *vm, int number, const struct hp_slot *slot)
{
	struct kvm_userspace_memory_region region = { .slot = (uint32_t)number,
						      .flags = slot->flags,
						      .guest_phys_addr = slot->gpa,
						      .memory_size = slot->length,
						      .userspace_addr = (uintptr_t)slot->addr };

	if (ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region))
		hp_die("KVM_SET_USER_MEMORY_REGION of %s", slot->name);
}

void hp_vm_slot(struct hp_vm *vm, const struct hp_slot *slot)
{
	const char *backing = slot->backing == HP_RAM ? "ram" : slot->region ? slot->region : "bar";
	int number = number_of(vm, slot->name), prot = PROT_READ | (slot->flags & KVM_MEM_READONLY ? 0 : PROT_WRITE);

	check_name(slot->name);
	set_region(vm, number, slot);
	vm->slots[number] = slot->name;
	tell("slot %s %s %d %" PRIx64 " %zx %" PRIx64 " %x %s %" PRIx64 "\n", slot->name, vm->name, getpid(), slot->gpa,
	     slot->length, (uint64_t)(uintptr_t)slot->addr, prot, backing, slot->file_offset);
}

void hp_vm_drop_slot(struct hp_vm *vm, const char *name)
{
	int number = number_of(vm, name);

	set_region(vm, number, &(struct hp_slot){ .name = name });
	vm->slots[number] = NULL;
	tell("slot-gone %s %s %d\n", name, vm->name, getpid());
}

size_t hp_vm_dirty_pages(struct hp_vm *vm, const struct hp_slot *slot)
{
	size_t words = (slot->length / 4096 + 63) / 64, dirty = 0;
	uint64_t *bitmap = calloc(words, sizeof(*bitmap));
	struct kvm_dirty_log log = { .slot = (uint32_t)number_of(vm, slot->name), .dirty_bitmap = bitmap };

	if (!bitmap || ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &log))
		hp_die("KVM_GET_DIRTY_LOG of %s", slot->name);
	for (size_t i = 0; i < words; i++)
		dirty += (size_t)__builtin_popcountll(bitmap[i]);
	free(bitmap);
	return dirty;
}

struct hp_vm_exit hp_vm_enter(struct hp_vm *vm, enum hp_vm_code code, uint64_t gpa, uint32_t value)
{
	struct kvm_regs regs = { .rip = CODE_GPA + code, .rdi = gpa, .rax = value, .rflags = 2 };
	struct hp_vm_exit how = { .error = 0 };

	if (gpa >> 32) {
		errno = EINVAL;
		hp_die("the vCPU has 32-bit addresses, %#" PRIx64 " is none", gpa);
	}
	if (ioctl(vm->vcpu_fd, KVM_SET_REGS, &regs))
		hp_die("KVM_SET_REGS");
	if (ioctl(vm->vcpu_fd, KVM_RUN, 0))
		how.error = errno;
	how.reason = vm->run->exit_reason;
	if (!how.error && how.reason == KVM_EXIT_MMIO) { /* the next KVM_RUN completes it: let it do nothing else */
		vm->run->immediate_exit = 1;
		ioctl(vm->vcpu_fd, KVM_RUN, 0);
		vm->run->immediate_exit = 0;
	}
	if (ioctl(vm->vcpu_fd, KVM_GET_REGS, &regs))
		hp_die("KVM_GET_REGS");
	how.value = (uint32_t)regs.rax;
	return how;
}

struct hp_vm_exit hp_vm_read(struct hp_vm *vm, uint64_t gpa)
{
	return hp_vm_enter(vm, HP_VM_LOAD, gpa, 0);
}

struct hp_vm_exit hp_vm_write(struct hp_vm *vm, uint64_t gpa, uint32_t value)
{
	return hp_vm_enter(vm, HP_VM_STORE, gpa, value);
}

int hp_vm_run_again(struct hp_vm *vm)
{
	return ioctl(vm->vcpu_fd, KVM_RUN, 0) ? errno : 0;
}

const char *hp_vm_ended(struct hp_vm_exit how)
{
	static char other[32];

	if (how.error)
		return hp_errno_name(how.error);
	if (how.reason == KVM_EXIT_HLT)
		return "done";
	if (how.reason == KVM_EXIT_MMIO)
		return "MMIO";
	snprintf(other, sizeof(other), "exit %u", how.reason);
	return other;
}

/* The counts of all VMs that this process knows, also of those that it has from its parent. */
void tell_vms(void)
{
	for (int i = 0; i < VMS; i++) {
		uint64_t count[COUNTED];

		if (!vms[i].owner)
			continue;
		for (size_t j = 0; j < COUNTED; j++)
			if (pread(vms[i].vm.stats_fd, &count[j], sizeof(count[j]), vms[i].at[j]) != sizeof(count[j]))
				hp_die("%s of KVM_GET_STATS_FD", counted[j]);
		tell("counts %s %d %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", vms[i].vm.name, vms[i].owner, count[0],
		     count[1], count[2]);
	}
}
