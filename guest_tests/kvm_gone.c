// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: what is gone from the tables of a process is gone from those of its virtual machine, and the vCPU cannot
 * reach it any more; when it is back, the vCPU has it back.
 *
 * --case=memory    the device's memory is switched off, and on again
 * --case=munmap    the mapping is unmapped, and mapped again
 * --case=mremap    the mapping is moved elsewhere, and back
 * --case=protnone  mprotect() to PROT_NONE, and back
 * --case=readonly  mprotect() to PROT_READ, and back
 *
 * --vcpu=running: while it goes, the vCPU reads and writes it over and over, in another thread.
 *
 * Mappings: "bar". The VM is "vm", with the slots "code" and "bar".
 * Checkpoints: written, running (only with --vcpu=running), gone, tried, read, back.
 */
#include <string.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"
#include "lib/kvm_loop.h"

#define GPA GIB(1)
#define RIGHTS (PROT_READ | PROT_WRITE)

static struct hp_bar bar;
static char *mapped, *elsewhere;
static size_t length;

static void protect(int prot)
{
	if (mprotect(mapped, length, prot))
		hp_die("mprotect");
	hp_bar_name("bar", mapped, length, prot, 0);
}

static void memory_off(void)
{
	hp_bar_memory(&bar, false);
}

static void memory_on(void)
{
	hp_bar_memory(&bar, true);
}

static void unmap(void)
{
	if (munmap(mapped, length))
		hp_die("munmap");
	hp_bar_name("bar", mapped, length, PROT_NONE, 0);
}

static void map_again(void)
{
	if (mmap(mapped, length, RIGHTS, MAP_SHARED | MAP_FIXED, bar.device_fd, (off_t)bar.offset) == MAP_FAILED)
		hp_die("mmap");
	hp_bar_name("bar", mapped, length, RIGHTS, 0);
}

static void move(void *from, void *to)
{
	if (mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		hp_die("mremap");
}

static void move_away(void)
{
	if (!elsewhere)
		elsewhere = hp_reserve(length, length > MIB(2) ? length : MIB(2));
	move(mapped, elsewhere);
	hp_bar_name("bar", mapped, length, PROT_NONE, 0);
}

static void move_back(void)
{
	move(elsewhere, mapped);
	hp_bar_name("bar", mapped, length, RIGHTS, 0);
}

static void no_rights(void)
{
	protect(PROT_NONE);
}

static void read_only(void)
{
	protect(PROT_READ);
}

static void all_rights(void)
{
	protect(RIGHTS);
}

static const struct gone {
	const char *name;
	void (*take)(void), (*give)(void);
} cases[] = {
	{ "memory", memory_off, memory_on },
	{ "munmap", unmap, map_again },
	{ "mremap", move_away, move_back },
	{ "protnone", no_rights, all_rights },
	{ "readonly", read_only, all_rights },
};

static void take_while_running(const struct gone *chosen, struct hp_vm *vm)
{
	struct hp_vm_loop loop;

	hp_vm_loop_start(&loop, vm, GPA);
	checkpoint("running");
	chosen->take();
	ktap_value("running", "%s", hp_vm_ended(hp_vm_loop_end(&loop)));
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct gone *chosen = hp_choose(&options, "case", "munmap", cases);
	bool running = !strcmp(hp_option(&options, "vcpu", "stopped"), "running");
	struct hp_vm *vm;

	bar = hp_bar_open(2);
	length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level);
	mapped = hp_bar_map(&bar, options.level, RIGHTS);
	vm = hp_vm_open("vm");
	ktap_plan(1);
	hp_vm_slot(vm, &(struct hp_slot){
			       .name = "bar", .gpa = GPA, .addr = mapped, .length = length, .backing = HP_BAR });
	ktap_value("before", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 1)));
	checkpoint("written");
	if (running)
		take_while_running(chosen, vm);
	else
		chosen->take();
	checkpoint("gone");
	ktap_value("while", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 2)));
	checkpoint("tried");
	ktap_value("read", "%s", hp_vm_ended(hp_vm_read(vm, GPA)));
	checkpoint("read");
	chosen->give();
	ktap_value("after", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 3)));
	checkpoint("back");
	ktap_ok(true, "the vCPU's accesses ended");
	return ktap_finish();
}
