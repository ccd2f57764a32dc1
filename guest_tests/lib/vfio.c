// SPDX-License-Identifier: GPL-2.0-only
/* The device: a PCI BAR through vfio-pci, by container and group (Documentation/driver-api/vfio.rst). */
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

#include "hugepfn.h"

static struct vfio_region_info region_info(int device_fd, unsigned int index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	if (ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &info))
		hp_die("VFIO_DEVICE_GET_REGION_INFO %u", index);
	return info;
}

/* The host finds out whether the kernel or only its modules lack the driver (harness/observe/run_result.py). */
static _Noreturn void no_device(const char *why)
{
	ktap_value("lacks", "device");
	ktap_skip_all("no device bound to vfio-pci: %s", why);
}

static struct hp_bar open_device(const char *group, const char *bdf)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	char path[64];
	int container_fd, group_fd, device_fd;

	container_fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (container_fd < 0)
		hp_die("open /dev/vfio/vfio");
	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	group_fd = open(path, O_RDWR | O_CLOEXEC);
	if (group_fd < 0)
		hp_die("open %s", path);
	if (ioctl(group_fd, VFIO_GROUP_GET_STATUS, &status))
		hp_die("VFIO_GROUP_GET_STATUS");
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		errno = EBUSY;
		hp_die("vfio group %s is not viable: another driver holds one of its devices", group);
	}
	if (!ioctl(container_fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU))
		no_device("this guest has no vfio_iommu_type1");
	if (ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &container_fd))
		hp_die("VFIO_GROUP_SET_CONTAINER");
	if (ioctl(container_fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		hp_die("VFIO_SET_IOMMU");
	device_fd = ioctl(group_fd, VFIO_GROUP_GET_DEVICE_FD, bdf);
	if (device_fd < 0)
		hp_die("VFIO_GROUP_GET_DEVICE_FD %s", bdf);
	return (struct hp_bar){ .device_fd = device_fd, .container_fd = container_fd, .group_fd = group_fd };
}

void hp_bar_memory(const struct hp_bar *bar, bool enabled)
{
	struct vfio_region_info config = region_info(bar->device_fd, VFIO_PCI_CONFIG_REGION_INDEX);
	off_t where = (off_t)config.offset + PCI_COMMAND;
	uint16_t command;

	if (pread(bar->device_fd, &command, sizeof(command), where) != sizeof(command))
		hp_die("read of PCI_COMMAND");
	command = enabled ? command | PCI_COMMAND_MEMORY : command & (uint16_t)~PCI_COMMAND_MEMORY;
	if (pwrite(bar->device_fd, &command, sizeof(command), where) != sizeof(command))
		hp_die("write of PCI_COMMAND");
}

struct hp_bar hp_bar_open(unsigned int bar)
{
	const char *group = getenv("HUGEPFN_VFIO_GROUP"), *bdf = getenv("HUGEPFN_VFIO_BDF");
	struct hp_bar opened;

	if (!group || !bdf)
		no_device(getenv("HUGEPFN_VFIO_WHY") ? getenv("HUGEPFN_VFIO_WHY") : "not started by the agent");
	opened = open_device(group, bdf);
	opened = hp_bar_also(&opened, bar);
	hp_bar_memory(&opened, true);
	return opened;
}

struct hp_bar hp_bar_also(const struct hp_bar *opened, unsigned int bar)
{
	struct vfio_region_info info = region_info(opened->device_fd, VFIO_PCI_BAR0_REGION_INDEX + bar);
	struct hp_bar also = *opened;

	if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP))
		ktap_skip_all("vfio-pci does not let BAR %u of %s be mapped", bar, getenv("HUGEPFN_VFIO_BDF"));
	also.size = info.size;
	also.offset = info.offset;
	/* The same names as in harness/guest/protocol.py, bar_name(). */
	if (bar == 2)
		strcpy(also.region, "bar");
	else
		snprintf(also.region, sizeof(also.region), "bar%u", bar % 6);
	return also;
}

static void name_part(const char *region, const char *name, void *addr, size_t length, int prot, uint64_t offset)
{
	hp_map(&(struct hp_mapping){ .name = name,
				     .addr = addr,
				     .length = length,
				     .prot = prot,
				     .backing = HP_BAR,
				     .region = region,
				     .file_offset = offset,
				     .pagemap_pages = length / 4096 });
}

void hp_bar_name(const char *name, void *addr, size_t length, int prot, uint64_t offset)
{
	name_part("bar", name, addr, length, prot, offset);
}

void *hp_bar_map_area(const struct hp_bar *bar, const struct hp_bar_area *area)
{
	size_t align = area->align > MIB(2) ? area->align : MIB(2);
	/* Free space on both sides, so that the mapping has no neighbour. */
	char *where = (char *)hp_reserve(align + area->skew + area->length + MIB(2), align) + align + area->skew, *addr;

	if (area->offset + area->length > bar->size)
		ktap_skip_all("the BAR has %llu bytes, the program needs %zu at %llu", (unsigned long long)bar->size,
			      area->length, (unsigned long long)area->offset);
	addr = mmap(where, area->length, area->prot, MAP_SHARED | MAP_FIXED | area->flags, bar->device_fd,
		    (off_t)(bar->offset + area->offset));
	if (addr == MAP_FAILED)
		hp_die("mmap of %zu bytes of the BAR", area->length);
	name_part(bar->region, area->name ? area->name : "bar", addr, area->length, area->prot, area->offset);
	return addr;
}

void *hp_bar_map(const struct hp_bar *bar, enum hp_level level, int prot)
{
	/* One leaf of the level, so that the next larger one does not fit; four entries at pte. */
	size_t length = level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(level);

	return hp_bar_map_area(
		bar, &(struct hp_bar_area){ .length = length, .align = hp_leaf_size(level), .prot = prot });
}
