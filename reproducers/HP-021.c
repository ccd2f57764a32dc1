// SPDX-License-Identifier: GPL-2.0-only
/*
 * HP-021: fork() copies a 1G entry of device-dax without counting it.
 *
 * Expected: the child's entry counts as one mapping of the folio and as 1G of the child's resident memory.
 * Broken: it does not. When the child exits, both are taken off all the same: "Bad rss-counter state" in the log, and
 * the folio has one reference less than it has mappings. (Without such counts there is nothing to see: FINE.)
 * Function: copy_huge_pud() in mm/huge_memory.c. fork() of shared memory comes there if a userfaultfd that follows
 * fork() has the VMA.
 *
 * Build: gcc -static -pthread -o HP-021 HP-021.c. Run it as root. It takes /dev/dax0.0 with an
 * alignment of 1G, or makes it of the persistent memory of a machine with memmap=2G!4G on its kernel command line
 * (drivers nd_e820, nd_pmem, dax_pmem and device_dax).
 * Exit status: 0 the kernel is fine, 1 it is broken, 2 this machine cannot tell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
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

/* Resident pages of files, in KiB (RssFile of /proc/PID/status). */
static long resident(void)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[256];
	long kib = -1;

	while (status && fgets(line, sizeof(line), status))
		if (!strncmp(line, "RssFile:", 8))
			kib = strtol(line + 8, NULL, 10);
	if (kib < 0)
		cannot_tell("read RssFile of /proc/self/status");
	fclose(status);
	return kib;
}

static void *read_event(void *uffd)
{
	char message[64]; /* struct uffd_msg is smaller */

	if (read(*(int *)uffd, message, sizeof(message)) < 0)
		cannot_tell("read the userfaultfd");
	return NULL;
}

int main(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK | 1 << 15 }; /* WP_ASYNC */
	volatile char *dax = map_dax();
	struct uffdio_register all = { .range = { (unsigned long)dax, GIB(1) }, .mode = UFFDIO_REGISTER_MODE_WP };
	int uffd = (int)syscall(SYS_userfaultfd, 0), status;
	long before = resident(), parent;
	pthread_t thread;
	pid_t child;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &all))
		cannot_tell("register /dev/dax0.0 with a userfaultfd");
	dax[0] = 1;
	parent = resident() - before;
	if (pthread_create(&thread, NULL, read_event, &uffd)) /* fork() returns only after that */
		cannot_tell("pthread_create");
	child = fork();
	if (child < 0)
		cannot_tell("fork");
	if (!child) {
		printf("resident pages of files: the access adds %ld KiB, and the child has %ld\n", parent, resident());
		_exit(resident() < parent);
	}
	if (waitpid(child, &status, 0) != child)
		cannot_tell("wait for the child");
	say(status != 0, "fork() with a 1G entry of device-dax");
}
