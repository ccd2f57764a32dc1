// SPDX-License-Identifier: GPL-2.0-only
/*
 * KTAP on stdout, one line at a time, so that a crash loses nothing that was already reported. Only the notes about
 * checkpoints wait for the next line of any process: each line wakes PID 1, and the host knows about checkpoints anyway.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hugepfn.h"
#include "shared.h"

static unsigned int planned, seen, failed;

void print_checkpoints(void)
{
	char notes[sizeof(shared->notes)];

	if (!shared)
		return;
	lock_shared();
	strcpy(notes, shared->notes);
	shared->notes[0] = '\0';
	unlock_shared();
	fputs(notes, stdout);
	fflush(stdout);
}

void note_checkpoint(const char *name)
{
	char note[HP_NAME + 16];
	bool fits;

	snprintf(note, sizeof(note), "# checkpoint %s\n", name);
	lock_shared();
	fits = strlen(shared->notes) + strlen(note) < sizeof(shared->notes);
	if (fits)
		strcat(shared->notes, note);
	unlock_shared();
	if (!fits) {
		print_checkpoints();
		note_checkpoint(name);
	}
}

static void say(const char *prefix, const char *fmt, va_list args)
{
	print_checkpoints();
	fputs(prefix, stdout);
	vprintf(fmt, args);
	putchar('\n');
	fflush(stdout);
}

void ktap_plan(unsigned int tests)
{
	planned = tests;
	printf("KTAP version 1\n1..%u\n", tests);
	fflush(stdout);
}

bool ktap_ok(bool ok, const char *fmt, ...)
{
	char prefix[32];
	va_list args;

	seen++;
	failed += !ok;
	snprintf(prefix, sizeof(prefix), "%s %u ", ok ? "ok" : "not ok", seen);
	va_start(args, fmt);
	say(prefix, fmt, args);
	va_end(args);
	return ok;
}

void ktap_note(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	say("# ", fmt, args);
	va_end(args);
}

void ktap_value(const char *name, const char *fmt, ...)
{
	char prefix[64];
	va_list args;

	snprintf(prefix, sizeof(prefix), "# value %s=", name);
	va_start(args, fmt);
	say(prefix, fmt, args);
	va_end(args);
}

void ktap_skip_all(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	say(planned ? "Bail out! a precondition failed after the plan: " : "KTAP version 1\n1..0 # SKIP ", fmt, args);
	va_end(args);
	exit(planned ? 1 : 4);
}

void hp_die(const char *fmt, ...)
{
	int error = errno;
	va_list args;

	va_start(args, fmt);
	print_checkpoints();
	printf("Bail out! ");
	vprintf(fmt, args);
	printf(": %s\n", error ? strerror(error) : "no error number");
	fflush(stdout);
	va_end(args);
	exit(1);
}

int ktap_finish(void)
{
	print_checkpoints();
	return planned && seen == planned && !failed ? 0 : 1;
}
