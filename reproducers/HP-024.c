// SPDX-License-Identifier: GPL-2.0-only
/*
 * HP-024: mremap() of a whole page table leaves the pages that it moves clean after clear_refs 4.
 *
 * Expected: a page that was moved is soft-dirty at its new address, as it is if its entry moves alone: nobody has saved
 * a page of that address (Documentation/admin-guide/mm/soft-dirty.rst).
 * Broken: it is clean, because the page table moves as a whole.
 * Function: move_normal_pmd() in mm/mremap.c.
 *
 * Build: gcc -static -o HP-024 HP-024.c. Run it as root. It needs no device, and a kernel with CONFIG_MEM_SOFT_DIRTY.
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

/* Writes to a file of sysfs. */
static void set(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		cannot_tell(path);
	close(fd);
}

/* --- the bug --- */

/* Bit 55 of the word of /proc/self/pagemap. */
static int soft_dirty(char *at)
{
	unsigned long word = 0;
	int file = open("/proc/self/pagemap", O_RDONLY);

	if (pread(file, &word, sizeof(word), (off_t)((unsigned long)at / KIB(4) * sizeof(word))) != sizeof(word))
		cannot_tell("/proc/self/pagemap");
	close(file);
	return (int)(word >> 55 & 1);
}

static char *move(char *at, char *to)
{
	if (mremap(at, MIB(2), MIB(2), MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		cannot_tell("mremap");
	return to;
}

static void clear(char *at)
{
	set("/proc/self/clear_refs", "4");
	if (soft_dirty(at))
		cannot_tell("clear_refs 4 leaves the page soft-dirty");
}

int main(void)
{
	char *at = mmap(NULL, MIB(16), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int alone, table;

	at = (char *)(((unsigned long)at + MIB(2) - 1) & ~(MIB(2) - 1));
	if (mmap(at, MIB(2), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
		cannot_tell("mmap");
	madvise(at, MIB(2), MADV_NOHUGEPAGE);
	for (size_t page = 0; page < MIB(2); page += KIB(4))
		at[page] = 1;
	if (!soft_dirty(at)) {
		errno = ENOTSUP;
		cannot_tell("this kernel has no soft-dirty pages");
	}
	clear(at);
	at = move(at, at + MIB(4));
	table = soft_dirty(at);
	clear(at);
	at = move(at, at + MIB(4) + KIB(4));
	alone = soft_dirty(at);
	printf("soft-dirty after a move of the table %d, of single pages %d\n", table, alone);
	if (!alone) {
		errno = ENOTSUP;
		cannot_tell("this kernel marks no page that moves");
	}
	say(!table, "a page that moved with its page table is soft-dirty");
}
