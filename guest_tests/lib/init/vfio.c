// SPDX-License-Identifier: GPL-2.0-only
/* Binds the device under test to vfio-pci. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "init.h"

static int path_of(const char *bdf, const char *what, char *path, size_t size)
{
	return snprintf(path, size, "/sys/bus/pci/devices/%s/%s", bdf, what);
}

/* NAME becomes the last component of the target of a symbolic link of the device, or an empty string. */
static const char *linked(const char *bdf, const char *what, char *name, size_t size)
{
	char path[128], target[PATH_MAX];
	const char *slash;
	ssize_t n;

	path_of(bdf, what, path, sizeof(path));
	n = readlink(path, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = 0;
	slash = strrchr(target, '/');
	snprintf(name, size, "%.*s", (int)size - 1, slash ? slash + 1 : target);
	return name;
}

static void say_no_group(const char *bdf, char *why, size_t size)
{
	snprintf(why, size,
		 "%s has no IOMMU group: the IOMMU is missing or off (intel_iommu=off, no CONFIG_INTEL_IOMMU)", bdf);
}

/* Binds BDF to vfio-pci. Returns false, with the reason in WHY, if it is not bound afterwards. */
static bool give_to_vfio(const char *bdf, char *why, size_t size)
{
	char path[128], driver[64], group[64];

	path_of(bdf, "driver_override", path, sizeof(path));
	if (write_file(path, "vfio-pci")) {
		snprintf(why, size, "no PCI device %s", bdf);
		return false;
	}
	/* A built-in driver of the device may have bound it first (nvme). */
	path_of(bdf, "driver/unbind", path, sizeof(path));
	if (!access(path, W_OK) && write_file(path, bdf))
		warn("unbind %s", bdf);
	if (write_file("/sys/bus/pci/drivers_probe", bdf))
		warn("drivers_probe %s", bdf);
	if (!strcmp(linked(bdf, "driver", driver, sizeof(driver)), "vfio-pci"))
		return true;
	if (access("/sys/bus/pci/drivers/vfio-pci", F_OK))
		snprintf(why, size, "this guest has no vfio-pci driver%s%s", *module_failure() ? ": " : "",
			 module_failure());
	else if (!*linked(bdf, "iommu_group", group, sizeof(group)))
		say_no_group(bdf, why, size);
	else
		snprintf(why, size, "vfio-pci did not bind to %s", bdf);
	return false;
}

static void find_group(struct vfio_device *device)
{
	snprintf(device->bdf, sizeof(device->bdf), "%s", option("hugepfn.vfio"));
	if (!*device->bdf) {
		snprintf(device->why, sizeof(device->why), "no device was requested");
		return;
	}
	if (!give_to_vfio(device->bdf, device->why, sizeof(device->why)))
		return;
	if (!*linked(device->bdf, "iommu_group", device->group, sizeof(device->group)))
		say_no_group(device->bdf, device->why, sizeof(device->why));
}

void bind_vfio(struct vfio_device *device)
{
	*device = (struct vfio_device){ .bdf = "" };
	find_group(device);
	if (*device->group) {
		setenv("HUGEPFN_VFIO_GROUP", device->group, 1);
		setenv("HUGEPFN_VFIO_BDF", device->bdf, 1);
		setenv("VFIO_GROUP", device->group, 1); /* for programs that do not know hugepfn */
		setenv("VFIO_BDF", device->bdf, 1);
		setenv("VFIO_SELFTESTS_BDF", device->bdf, 1); /* tools/testing/selftests/vfio/lib */
	} else {
		setenv("HUGEPFN_VFIO_WHY", device->why, 1);
	}
}
