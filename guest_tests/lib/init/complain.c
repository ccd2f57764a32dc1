// SPDX-License-Identifier: GPL-2.0-only
/* Reports on the console what went wrong while the guest was set up. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "init.h"

static void complain(const char *fmt, va_list args)
{
	int error = errno;

	fprintf(stderr, "hugepfn init: ");
	vfprintf(stderr, fmt, args);
	fprintf(stderr, ": %s\n", strerror(error));
}

void die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	complain(fmt, args);
	va_end(args);
	exit(1);
}

void warn(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	complain(fmt, args);
	va_end(args);
}
