// SPDX-License-Identifier: GPL-2.0-only
/*
 * HP-009: pagemap calls all pages of a huge page exclusive once the first one is, although another process maps the
 * others.
 *
 * Expected: a page that a child still maps is not exclusive (bit 56 of its pagemap word).
 * Broken: the parent's page 1 counts as exclusive, because only the child's page 0 has been replaced.
 * Function: pagemap_pmd_range() in fs/proc/task_mmu.c, which looks at the first page alone.
 *
 * Build: gcc -static -pthread -o HP-009 HP-009.c. Run it as root.
 * Exit status: 0 the kernel is fine, 1 it is broken, 2 this machine cannot tell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB(n) ((size_t)(n) << 10)
#define MIB(n) ((size_t)(n) << 20)
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

/* --- the bug --- */

static int exclusive(const char *at)
{
	int file = open("/proc/self/pagemap", O_RDONLY);
	unsigned long word;

	if (file < 0 || pread(file, &word, 8, (off_t)((unsigned long)at / 4096 * 8)) != 8)
		cannot_tell("/proc/self/pagemap");
	close(file);
	return word >> 56 & 1;
}

int main(void)
{
	char *where = mmap(NULL, MIB(6), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int done[2], end[2];
	char byte;
	pid_t child;

	if (where == MAP_FAILED || pipe(done) || pipe(end))
		cannot_tell("mmap, pipe");
	where = (char *)(((unsigned long)where + MIB(4) - 1) & ~(MIB(2) - 1));
	if (mmap(where, MIB(2), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != where ||
	    madvise(where, MIB(2), MADV_HUGEPAGE))
		cannot_tell("memory for a huge page");
	where[0] = 1;
	child = fork();
	if (child < 0)
		cannot_tell("fork");
	if (!child) {
		where[0] = 2; /* gets a page of its own, and still maps the other 511 */
		if (write(done[1], "", 1) != 1 || close(end[1]) || read(end[0], &byte, 1))
			_exit(1);
		_exit(0);
	}
	if (read(done[0], &byte, 1) != 1)
		cannot_tell("read");
	say(exclusive(where + KIB(4)), "page 1, which the child maps as well");
}
