// SPDX-License-Identifier: GPL-2.0-only
/*
 * Prints the regions of a PCI device and the first word of each BAR that can be mapped. The program uses only vfio and
 * knows nothing about hugepfn. Build it on the host and run it in a guest:
 *
 *	gcc -o vfio-regions examples/vfio-regions.c && hugepfn exec --kernel debian:6.12 ./vfio-regions {bdf}
 *
 * VFIO_GROUP has the number of the IOMMU group; the only argument is the device's name (domain:bus:device.function).
 */
#include <err.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	const char *number = getenv("VFIO_GROUP");
	int container, group, device;
	char path[64];

	if (argc != 2 || !number)
		errx(2, "usage: VFIO_GROUP=N %s BDF", argv[0]);
	container = open("/dev/vfio/vfio", O_RDWR);
	if (container < 0)
		err(1, "/dev/vfio/vfio");
	snprintf(path, sizeof(path), "/dev/vfio/%s", number);
	group = open(path, O_RDWR);
	if (group < 0)
		err(1, "%s", path);
	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) || !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		errx(1, "group %s is not viable: not all its devices are bound to vfio", number);
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) || ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		err(1, "type 1 IOMMU");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[1]);
	if (device < 0)
		err(1, "%s", argv[1]);
	for (unsigned int index = VFIO_PCI_BAR0_REGION_INDEX; index <= VFIO_PCI_BAR5_REGION_INDEX; index++) {
		struct vfio_region_info region = { .argsz = sizeof(region), .index = index };
		volatile uint32_t *mapped;

		if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region))
			err(1, "region %u", index);
		if (!region.size)
			continue;
		printf("BAR %u: %llu bytes%s", index, region.size, region.flags & VFIO_REGION_INFO_FLAG_MMAP ? "" : ", not mappable");
		if (region.flags & VFIO_REGION_INFO_FLAG_MMAP) {
			mapped = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)region.offset);
			if (mapped == MAP_FAILED)
				err(1, "mmap of BAR %u", index);
			printf(", first word %#x", mapped[0]);
		}
		printf("\n");
	}
	return 0;
}
