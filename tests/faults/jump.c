// SPDX-License-Identifier: GPL-2.0-only
/* Preloaded: CLOCK_REALTIME jumps by JUMP_S seconds at the JUMP_AFTER-th look at it. CLOCK_MONOTONIC never does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

static atomic_long looks;

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	const char *after = getenv("JUMP_AFTER"), *by = getenv("JUMP_S");
	int result;

	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, now);
	if (!result && clock == CLOCK_REALTIME && after && by && ++looks >= atol(after))
		now->tv_sec += atol(by);
	return result;
}
