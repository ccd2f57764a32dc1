// SPDX-License-Identifier: GPL-2.0-only
/*
 * A process that does not use checkpoint(): it maps several kinds of memory and sleeps. Its parent prints its pid once
 * everything is mapped, and exits.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define PAGE 4096UL

static char *map(size_t length, int flags)
{
	char *at = mmap(NULL, length, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		abort();
	return at;
}

static void fill(void)
{
	char *small = map(64 * PAGE, MAP_PRIVATE);
	char *huge = map(8 * MIB, MAP_PRIVATE);
	char *shared = map(16 * PAGE, MAP_SHARED);
	volatile char seen;
	unsigned long i;

	for (i = 0; i < 64; i += 3)	/* with holes in between */
		small[i * PAGE] = 1;
	seen = small[1 * PAGE];		/* maps the zero page */
	if (mprotect(small + 12 * PAGE, PAGE, PROT_NONE) || mprotect(small + 24 * PAGE, PAGE, PROT_READ))
		abort();
	madvise(huge, 8 * MIB, MADV_HUGEPAGE);	/* small pages if the kernel has none */
	memset(huge, 1, 8 * MIB);
	memset(shared, 2, 16 * PAGE);
	(void)seen;
}

int main(void)
{
	int gate[2];
	char byte;
	pid_t pid;

	if (pipe(gate))
		return 1;
	pid = fork();
	if (pid < 0)
		return 1;
	if (pid == 0) {
		fill();
		setsid();
		if (write(gate[1], "!", 1) != 1)
			abort();
		close(gate[0]);
		close(gate[1]);
		close(0);
		close(1);
		close(2);
		for (;;)
			pause();
	}
	close(gate[1]);
	if (read(gate[0], &byte, 1) != 1)
		return 1;
	printf("%d\n", pid);
	return 0;
}
