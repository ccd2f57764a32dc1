// SPDX-License-Identifier: GPL-2.0-only
/*
 * HP-020: fork() fails once a process has written to the first page of a private mapping of a BAR.
 *
 * Expected: fork() works, as it does after a write to another page.
 * Broken: it gets ENOMEM, for as long as the mapping is there.
 * Function: track_pfn_copy() in arch/x86/mm/pat/memtype.c, which wants the physical address of the VMA from its first
 * entry, and that maps a copy by then.
 *
 * Build: gcc -static -pthread -o HP-020 HP-020.c. Run it as root. It takes the PCI address of a device,
 * whose resource2 has to be memory, and which it takes from its driver.
 * Exit status: 0 the kernel is fine, 1 it is broken, 2 this machine cannot tell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define KIB(n) ((size_t)(n) << 10)
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

/* --- the bug --- */

/* The file of the device in sysfs. */
static const char *file_of(const char *bdf, const char *name)
{
	static char path[256];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
	return path;
}

int main(int argc, char **argv)
{
	const char *bdf = argc > 1 ? argv[1] : getenv("VFIO_BDF");
	volatile char *bar;
	pid_t child;
	int fd;

	setbuf(stdout, NULL);
	if (!bdf) {
		printf("give the PCI address of a device, such as 0000:00:05.0\n");
		return 2;
	}
	if (!access(file_of(bdf, "driver"), F_OK))
		set(file_of(bdf, "driver/unbind"), bdf);
	fd = open(file_of(bdf, "resource2"), O_RDWR);
	if (fd < 0)
		cannot_tell("open resource2");
	bar = mmap(NULL, KIB(16), RW, MAP_PRIVATE, fd, 0);
	if (bar == MAP_FAILED)
		cannot_tell("mmap of resource2, private");
	bar[0] = 1;
	child = fork();
	if (!child)
		_exit(0);
	printf("fork() after a write to the first page: %s\n", child < 0 ? strerror(errno) : "done");
	if (child > 0)
		waitpid(child, NULL, 0);
	say(child < 0, "fork() with a private mapping of a BAR");
}
