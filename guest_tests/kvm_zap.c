// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a leaf that the kernel zaps on its own account is gone from the tables of every virtual machine as well,
 * and an access of a vCPU brings it back, in the process and in that virtual machine alone.
 *
 * --case=smaps  a reader of /proc/self/smaps
 * --case=reset  VFIO_DEVICE_RESET
 * --case=off    the device's memory is switched off and on
 *
 * Mappings: "bar". The VMs are "vm" and "other", each with the slots "code" and "bar", over the same memory.
 * Checkpoints: written, zapped, back, other-back.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"

#define GPA GIB(1)

static struct hp_bar bar;

static void read_smaps(void)
{
	char text[4096];
	int fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : 1;

	while (got > 0)
		got = read(fd, text, sizeof(text));
	if (got < 0)
		hp_die("read of /proc/self/smaps");
	close(fd);
}

static void reset(void)
{
	if (ioctl(bar.device_fd, VFIO_DEVICE_RESET))
		ktap_skip_all("VFIO_DEVICE_RESET: %s", strerror(errno));
	hp_bar_memory(&bar, true);
}

static void off_and_on(void)
{
	hp_bar_memory(&bar, false);
	hp_bar_memory(&bar, true);
}

static const struct zap {
	const char *name;
	void (*run)(void);
} cases[] = { { "smaps", read_smaps }, { "reset", reset }, { "off", off_and_on } };

static struct hp_vm *over(const char *name, void *mapped, size_t length)
{
	struct hp_vm *vm = hp_vm_open(name);

	hp_vm_slot(vm, &(struct hp_slot){
			       .name = "bar", .gpa = GPA, .addr = mapped, .length = length, .backing = HP_BAR });
	return vm;
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct zap *chosen = hp_choose(&options, "case", "off", cases);
	size_t length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level);
	struct hp_vm *vm, *other;
	char *mapped;

	bar = hp_bar_open(2);
	mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	vm = over("vm", mapped, length);
	other = over("other", mapped, length);
	ktap_plan(1);
	ktap_value("before", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 1)));
	ktap_value("other-before", "%s", hp_vm_ended(hp_vm_write(other, GPA, 2)));
	checkpoint("written");
	chosen->run();
	checkpoint("zapped");
	ktap_value("after", "%s", hp_vm_ended(hp_vm_write(vm, GPA, 3)));
	checkpoint("back");
	ktap_value("other-after", "%s", hp_vm_ended(hp_vm_write(other, GPA, 4)));
	checkpoint("other-back");
	ktap_ok(true, "the vCPUs' accesses ended");
	return ktap_finish();
}
