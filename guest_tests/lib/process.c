// SPDX-License-Identifier: GPL-2.0-only
/* Processes that share their parent's memory, and the size of a process's page tables. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "hugepfn.h"

#define STACK_BYTES KIB(256)

pid_t hp_clone_vm(int flags, int (*main)(void *), void *argument)
{
	char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	if (stack == MAP_FAILED)
		hp_die("mmap of a stack");
	pid = clone(main, stack + STACK_BYTES, CLONE_VM | flags | SIGCHLD, argument);
	if (pid < 0)
		hp_die("clone");
	return pid;
}

long hp_page_table_kib(pid_t pid)
{
	char path[64], line[256];
	long kib = -1;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", pid ? pid : getpid());
	status = fopen(path, "re");
	if (!status)
		hp_die("open %s", path);
	while (fgets(line, sizeof(line), status))
		if (!strncmp(line, "VmPTE:", 6))
			kib = strtol(line + 6, NULL, 10);
	fclose(status);
	if (kib < 0) {
		errno = ENOENT;
		hp_die("VmPTE in %s", path);
	}
	return kib;
}

uint64_t hp_cpu_time_ns(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now))
		hp_die("clock_gettime");
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
