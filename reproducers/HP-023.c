// SPDX-License-Identifier: GPL-2.0-only
/*
 * HP-023: VFIO maps 1G of a BAR for DMA whose mapping is PROT_NONE.
 *
 * Expected: VFIO_IOMMU_MAP_DMA answers EFAULT, as for other memory that its process may not read.
 * Broken: the device may read it, although the process gets SIGSEGV there, and so may a virtual machine of KVM.
 * HP-019 is the same for less than 1G, in another function.
 * Function: follow_pfnmap_start() in mm/memory.c, which takes every pud that is not empty for one that is there, where
 * it asks pmds and ptes whether they are present.
 *
 * Build: gcc -static -pthread -o HP-023 HP-023.c. Run it as root. It takes the PCI address of a device that is bound
 * to vfio-pci.
 * Exit status: 0 the kernel is fine, 1 it is broken, 2 this machine cannot tell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define GIB(n) ((size_t)(n) << 30)
#define RW (PROT_READ | PROT_WRITE)

/* The device under test, and its largest BAR that can be mapped. */
static int container, device;
static off_t bar_offset;
static size_t bar_size;

static _Noreturn void cannot_tell(const char *why)
{
	printf("CANNOT TELL: %s: %s\n", why, strerror(errno));
	exit(2);
}

static _Noreturn void say(int broken, const char *what)
{
	printf("%s: %s\n", broken ? "BROKEN" : "FINE", what);
	fflush(stdout);
	_exit(broken);
}

/* The command register's memory bit: without it, the BAR answers nobody. */
static void set_memory(int on)
{
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	unsigned short command;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) ||
	    pread(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		cannot_tell("read PCI_COMMAND");
	command = on ? command | PCI_COMMAND_MEMORY : command & ~PCI_COMMAND_MEMORY;
	if (pwrite(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		cannot_tell("write PCI_COMMAND");
}

/* Opens a device that is bound to vfio-pci, by container and group (Documentation/driver-api/vfio.rst). */
static void open_device(const char *bdf)
{
	char path[256], link[256];
	ssize_t length;
	int group;

	setbuf(stdout, NULL);
	if (!bdf) {
		printf("give the PCI address of a device, such as 0000:00:05.0\n");
		exit(2);
	}
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	length = readlink(path, link, sizeof(link) - 1);
	if (length < 0)
		cannot_tell(path);
	link[length] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%.200s", strrchr(link, '/') + 1);
	container = open("/dev/vfio/vfio", O_RDWR);
	group = open(path, O_RDWR);
	if (container < 0 || group < 0)
		cannot_tell("open the vfio group of the device (is it bound to vfio-pci?)");
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) || ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		cannot_tell("set the IOMMU of the container");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
	if (device < 0)
		cannot_tell("VFIO_GROUP_GET_DEVICE_FD");
	for (unsigned int bar = 0; bar < 6; bar++) {
		struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_BAR0_REGION_INDEX + bar };

		if (!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) && info.flags & VFIO_REGION_INFO_FLAG_MMAP &&
		    info.size > bar_size) {
			bar_size = info.size;
			bar_offset = (off_t)info.offset;
		}
	}
	set_memory(1);
}

/* Maps the first SIZE bytes of the BAR where a leaf of SIZE fits, with nothing beside them. */
static volatile char *map_bar(size_t size, int prot)
{
	char *where;

	if (bar_size < size) {
		errno = ENOSPC;
		cannot_tell("the BAR is smaller than a leaf");
	}
	where = mmap(NULL, 3 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (where == MAP_FAILED)
		cannot_tell("mmap of a reservation");
	where = (char *)(((unsigned long)where + 2 * size - 1) & ~(size - 1));
	if (mmap(where, size, prot, MAP_SHARED | MAP_FIXED, device, bar_offset) != where)
		cannot_tell("mmap of the BAR");
	return where;
}

/* --- the bug --- */

#define IOVA 0x40000000ul

/* Whether the BAR can be mapped for the device to read. */
static int can_map(volatile char *bar)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map),
						.flags = VFIO_DMA_MAP_FLAG_READ,
						.vaddr = (unsigned long)bar,
						.iova = IOVA,
						.size = GIB(1) };
	struct vfio_iommu_type1_dma_unmap undo = { .argsz = sizeof(undo), .iova = IOVA, .size = GIB(1) };

	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map))
		return 0;
	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &undo) || undo.size != GIB(1))
		cannot_tell("VFIO_IOMMU_UNMAP_DMA");
	return 1;
}

int main(int argc, char **argv)
{
	volatile char *bar;

	open_device(argc > 1 ? argv[1] : getenv("VFIO_BDF"));
	bar = map_bar(GIB(1), RW);
	bar[0] = 1;
	if (!can_map(bar))
		cannot_tell("VFIO_IOMMU_MAP_DMA maps nothing at all");
	if (mprotect((void *)bar, GIB(1), PROT_NONE))
		cannot_tell("mprotect");
	say(can_map(bar), "VFIO_IOMMU_MAP_DMA of a mapping that is PROT_NONE");
}
