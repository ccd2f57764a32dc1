/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory of devices that vfio does not map: a BAR through sysfs, and persistent memory through device-dax. */
#ifndef HUGEPFN_DEVICES_H
#define HUGEPFN_DEVICES_H

#include "hugepfn.h"

/*
 * Takes the device under test from vfio-pci, so that sysfs lets its BARs be mapped: while a driver has reserved a BAR,
 * it does not (CONFIG_IO_STRICT_DEVMEM). Skips the run if there is no such device, or it has no BAR number BAR.
 */
void hp_device_free(unsigned int bar);

/* Gives it back. What is mapped through sysfs is unmapped once vfio reserves the BAR. */
void hp_device_back(void);

/* Opens a file of the device's folder in sysfs for reading and writing: "resource2". Skips the run if there is none. */
int hp_device_open(const char *file);

/*
 * Makes a device-dax device of all persistent memory, whose leaves are those of LEVEL, and opens it. The machine needs
 * memory that is declared as persistent (memmap=SIZE!START on the kernel command line) and the drivers nd_e820, nd_pmem
 * and dax_pmem. Skips the run if it has not, or if the device has no room for a leaf.
 */
int hp_devdax_open(enum hp_level level);

#endif
