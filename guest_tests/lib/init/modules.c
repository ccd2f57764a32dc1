// SPDX-License-Identifier: GPL-2.0-only
/* Loads the modules that the host put into the initramfs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

static char failure[160];

/* /modules/order names the files below /modules in insmod order, one per line. */
void load_modules(void)
{
	FILE *order = fopen("/modules/order", "re");
	char name[256], path[300];

	if (!order)
		return;
	while (fscanf(order, "%255s", name) == 1) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)) {
			if (!*failure)
				snprintf(failure, sizeof(failure), "%.100s: %s", name, strerror(errno));
			warn("module %s", name);
		}
		if (fd >= 0)
			close(fd);
	}
	fclose(order);
}

const char *module_failure(void)
{
	return failure;
}

const char *missing_modules(void)
{
	static char missing[64];

	snprintf(missing, sizeof(missing), "%s%s",
		 access("/sys/bus/pci/drivers/vfio-pci", F_OK) ? "vfio_pci " : "",
		 access("/sys/module/vfio_iommu_type1", F_OK) ? "vfio_iommu_type1 " : "");
	return missing;
}
