// SPDX-License-Identifier: GPL-2.0-only
/*
 * HP-022: mprotect() calls a 1G entry of device-dax a bad pud, and clears it.
 *
 * Expected: the entry is made read-only, as a 2M entry is.
 * Broken: "bad pud" in the log, and the entry is gone.
 * Function: change_pud_range() in mm/mprotect.c, which takes each pud that is no table for damage.
 *
 * Build: gcc -static -pthread -o HP-022 HP-022.c. Run it as root. It takes /dev/dax0.0 with an
 * alignment of 1G, or makes it of the persistent memory of a machine with memmap=2G!4G on its kernel command line
 * (drivers nd_e820, nd_pmem, dax_pmem and device_dax).
 * Exit status: 0 the kernel is fine, 1 it is broken, 2 this machine cannot tell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <unistd.h>

#define GIB(n) ((size_t)(n) << 30)
#define RW (PROT_READ | PROT_WRITE)

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

/* How often the kernel log says this. */
static int logged(const char *words)
{
	int size = klogctl(10, NULL, 0), length, found = 0; /* SYSLOG_ACTION_SIZE_BUFFER */
	char *log = malloc((size_t)size + 1);

	length = log ? klogctl(3, log, size) : -1; /* SYSLOG_ACTION_READ_ALL */
	if (length < 0)
		cannot_tell("read the kernel log");
	log[length] = 0;
	for (char *at = log; (at = strstr(at, words)); at++)
		found++;
	free(log);
	return found;
}

/* Writes to a file of sysfs. */
static void set(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		cannot_tell(path);
	close(fd);
}

/* The first 1G of /dev/dax0.0, which is made of namespace0.0 (memmap=2G!4G on the command line) if there is none. */
static char *map_dax(void)
{
	char *where = mmap(NULL, GIB(2), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/dev/dax0.0", O_RDWR);

	setbuf(stdout, NULL);
	if (fd < 0) {
		set("/sys/bus/nd/drivers/nd_pmem/unbind", "namespace0.0");
		set("/sys/bus/nd/devices/dax0.0/uuid", "12345678-1234-1234-1234-123456789abc");
		set("/sys/bus/nd/devices/dax0.0/mode", "pmem");
		set("/sys/bus/nd/devices/dax0.0/align", "1073741824");
		set("/sys/bus/nd/devices/dax0.0/namespace", "namespace0.0");
		set("/sys/bus/nd/drivers/dax_pmem/bind", "dax0.0");
		fd = open("/dev/dax0.0", O_RDWR);
	}
	where = (char *)(((unsigned long)where + GIB(1) - 1) & ~(GIB(1) - 1));
	where = mmap(where, GIB(1), RW, MAP_SHARED | MAP_FIXED, fd, 0);
	if (where == MAP_FAILED)
		cannot_tell("map 1G of /dev/dax0.0");
	return where;
}

/* --- the bug --- */

int main(void)
{
	char *dax = map_dax();
	int before, found;

	*(volatile char *)dax = 1;
	before = logged("bad pud");
	if (mprotect(dax, GIB(1), PROT_READ))
		cannot_tell("mprotect");
	found = logged("bad pud") - before;
	printf("%d new lines with \"bad pud\" in the kernel log\n", found);
	say(found > 0, "mprotect() of a 1G entry of device-dax");
}
