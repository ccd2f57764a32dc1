// SPDX-License-Identifier: GPL-2.0-only
/*
 * The benchmark's range: 1 GiB of a BAR as 262,144 entries of 4K, since the mapping is one page off the congruence
 * that a larger leaf needs. After the checkpoint "filled" the guest's own witness reads pagemap over the range and
 * reports how long it took ("# pagemap_ns=N").
 *
 * --vcpu=yes: a vCPU of the VM "vm" reads each page as well, before the checkpoint "nested".
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"

#define LENGTH GIB(1)

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void read_pagemap(const char *start)
{
	static uint64_t words[LENGTH / 4096];
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int64_t begin = now_ns();

	for (size_t done = 0; done < sizeof(words);) {
		off_t where = (off_t)((uintptr_t)start / 4096 * 8 + done);
		ssize_t n = pread(fd, (char *)words + done, sizeof(words) - done, where);

		if (n <= 0)
			hp_die("/proc/self/pagemap");
		done += (size_t)n;
	}
	ktap_note("pagemap_ns=%lld", (long long)(now_ns() - begin));
	close(fd);
}

static void read_nested(char *mapped)
{
	struct hp_vm *vm = hp_vm_open("vm");

	hp_vm_slot(vm, &(struct hp_slot){ .name = "bar",
					  .gpa = GIB(1) + KIB(4),
					  .addr = mapped,
					  .length = LENGTH,
					  .flags = KVM_MEM_READONLY,
					  .backing = HP_BAR });
	for (size_t at = 0; at < LENGTH; at += KIB(4))
		if (hp_vm_read(vm, GIB(1) + KIB(4) + at).reason != KVM_EXIT_HLT)
			hp_die("read of the vCPU");
	checkpoint("nested");
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_bar bar;
	char *mapped;

	bar = hp_bar_open(2);
	mapped = (char *)hp_reserve(LENGTH + MIB(2), MIB(2)) + KIB(4);
	mapped = mmap(mapped, LENGTH, PROT_READ, MAP_SHARED | MAP_FIXED, bar.device_fd, (off_t)bar.offset);
	if (mapped == MAP_FAILED)
		hp_die("mmap");
	hp_map(&(struct hp_mapping){
		.name = "bar", .addr = mapped, .length = LENGTH, .prot = PROT_READ, .backing = HP_BAR, .pagemap_pages = 4 });
	ktap_plan(1);
	for (size_t at = 0; at < LENGTH; at += KIB(4))
		hp_read(mapped + at);
	checkpoint("filled");
	read_pagemap(mapped);
	if (!strcmp(hp_option(&options, "vcpu", "no"), "yes"))
		read_nested(mapped);
	ktap_ok(true, "every page was read");
	return ktap_finish();
}
