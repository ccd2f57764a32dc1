// SPDX-License-Identifier: GPL-2.0-only
/* A BAR through sysfs (Documentation/PCI/sysfs-pci.rst), and device-dax (Documentation/driver-api/nvdimm/). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices.h"

#define ND "/sys/bus/nd/devices/"
#define DAX "/sys/bus/dax/devices/dax0.0/"

static void must_write(const char *path, const char *text)
{
	errno = hp_write_file(path, text);
	if (errno)
		hp_die("write of %s to %s", text, path);
}

static const char *device(void)
{
	return getenv("HUGEPFN_VFIO_BDF");
}

void hp_device_free(unsigned int bar)
{
	struct hp_bar opened = hp_bar_open(bar); /* it skips the run if there is no device */

	close(opened.device_fd);
	close(opened.group_fd);
	close(opened.container_fd);
	must_write("/sys/bus/pci/drivers/vfio-pci/unbind", device());
}

void hp_device_back(void)
{
	must_write("/sys/bus/pci/drivers_probe", device());
}

int hp_device_open(const char *file)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", device(), file);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		ktap_skip_all("the device has no file %s in sysfs", file);
	if (fd < 0)
		hp_die("open %s", path);
	return fd;
}

static unsigned long long number_in(const char *path)
{
	FILE *file = fopen(path, "re");
	unsigned long long number;
	char line[32], *end;

	if (!file || !fgets(line, sizeof(line), file)) /* fscanf() would make each program 120 KB larger */
		hp_die("read of %s", path);
	number = strtoull(line, &end, 10);
	if (end == line)
		hp_die("a number in %s", path);
	fclose(file);
	return number;
}

/* The region's next free device becomes one of the wanted alignment, over the namespace that nd_pmem has until then. */
static void configure(enum hp_level level)
{
	char align[16];

	snprintf(align, sizeof(align), "%zu", hp_leaf_size(level));
	must_write("/sys/bus/nd/drivers/nd_pmem/unbind", "namespace0.0");
	must_write(ND "dax0.0/uuid", "12345678-1234-1234-1234-123456789abc");
	must_write(ND "dax0.0/mode", "pmem");
	must_write(ND "dax0.0/align", align);
	must_write(ND "dax0.0/namespace", "namespace0.0");
}

int hp_devdax_open(enum hp_level level)
{
	int fd, error;

	if (access(ND "namespace0.0", F_OK))
		ktap_skip_all("no persistent memory in this machine: the kernel needs memmap=SIZE!START on its command line "
			      "and the driver nd_e820 (CONFIG_X86_PMEM_LEGACY)");
	if (access("/sys/bus/nd/drivers/nd_pmem", F_OK) || access("/sys/bus/nd/drivers/dax_pmem", F_OK))
		ktap_skip_all("no device-dax in this machine: the kernel needs the drivers nd_pmem (CONFIG_BLK_DEV_PMEM) "
			      "and dax_pmem (CONFIG_DEV_DAX_PMEM)");
	configure(level);
	error = hp_write_file("/sys/bus/nd/drivers/dax_pmem/bind", "dax0.0");
	if (error || access(DAX "size", F_OK) || number_in(DAX "size") < hp_leaf_size(level))
		ktap_skip_all("the persistent memory of this machine has no room for a %s leaf (%s): give memmap= more, "
			      "and the machine --memory", hp_level_name(level), strerror(error));
	fd = open("/dev/dax0.0", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		hp_die("open /dev/dax0.0");
	return fd;
}
