// SPDX-License-Identifier: GPL-2.0-only
/*
 * HP-006: mprotect() of a dirty pmd loses its dirty bit.
 *
 * Expected: what was written before mprotect(PROT_READ) stays dirty: Private_Dirty of smaps counts the huge page.
 * Broken: Private_Clean counts it. With a pfnmap the same bit is lost, but user space cannot see it there, so this
 * uses a transparent huge page.
 * Function: pmd_modify() in arch/x86/include/asm/pgtable.h masks the dirty bit out before it is saved.
 *
 * Build: gcc -static -pthread -o HP-006 HP-006.c. Run it as root.
 * Exit status: 0 the kernel is fine, 1 it is broken, 2 this machine cannot tell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

/* The sum of a counter of smaps in the memory at AT, in KiB. */
static long smaps_kib(const void *at, const char *counter)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long start, end;
	char line[512];
	int inside = 0;
	long sum = 0;

	if (!file)
		cannot_tell("/proc/self/smaps");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (unsigned long)at && (unsigned long)at < end;
		else if (inside && !strncmp(line, counter, strlen(counter)))
			sum += strtol(line + strlen(counter), NULL, 10);
	}
	fclose(file);
	return sum;
}

int main(void)
{
	char *where = mmap(NULL, MIB(6), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long dirty;

	if (where == MAP_FAILED)
		cannot_tell("mmap");
	where = (char *)(((unsigned long)where + MIB(4) - 1) & ~(MIB(2) - 1));
	if (mmap(where, MIB(2), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != where ||
	    madvise(where, MIB(2), MADV_HUGEPAGE))
		cannot_tell("memory for a huge page");
	where[0] = 1;
	if (smaps_kib(where, "AnonHugePages:") != 2048)
		cannot_tell("there is no transparent huge page");
	if (mprotect(where, MIB(2), PROT_READ))
		cannot_tell("mprotect");
	dirty = smaps_kib(where, "Private_Dirty:");
	printf("Private_Dirty after mprotect(PROT_READ): %ld of 2048 kB\n", dirty);
	say(dirty != 2048, "the dirty bit after mprotect(PROT_READ)");
}
