// SPDX-License-Identifier: GPL-2.0-only
/* The events channel: what a program tells the host, and the table that its processes share. */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hugepfn.h"
#include "shared.h"

struct shared *shared;
static int events_fd = -1;

/*
 * Lines that go out in one write, since each goes through QEMU. They are those of one process: others that share this
 * memory write theirs at once.
 */
static char told[4096];
static size_t told_length;
static _Atomic pid_t gatherer;

void lock_shared(void)
{
	while (atomic_flag_test_and_set_explicit(&shared->lock, memory_order_acquire))
		__builtin_ia32_pause();
}

void unlock_shared(void)
{
	atomic_flag_clear_explicit(&shared->lock, memory_order_release);
}

void open_events(void)
{
	const char *fd = getenv("HUGEPFN_EVENTS_FD");

	events_fd = fd ? atoi(fd) : -1;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED) {
		shared = NULL;
		hp_die("mmap of the shared table");
	}
}

bool host_listens(void)
{
	return events_fd >= 0;
}

/* One write, which the port does not split, so that a line stays whole. */
static void send(const char *lines, size_t length)
{
	ssize_t n;

	do
		n = write(events_fd, lines, length);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)length)
		hp_die("events channel: wrote %zd of %zu bytes", n, length);
}

void gather_told(void)
{
	pid_t nobody = 0;

	atomic_compare_exchange_strong(&gatherer, &nobody, getpid());
}

static void send_gathered(void)
{
	if (told_length)
		send(told, told_length);
	told_length = 0;
}

void send_told(void)
{
	if (gatherer != getpid())
		return;
	send_gathered();
	gatherer = 0;
}

void tell_line(const char *line, size_t length)
{
	if (events_fd < 0)
		return;
	if (gatherer == getpid()) {
		if (told_length + length > sizeof(told))
			send_gathered();
		if (length <= sizeof(told)) {
			memcpy(told + told_length, line, length);
			told_length += length;
			return;
		}
	}
	send(line, length);
}

void tell(const char *fmt, ...)
{
	char line[512];
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(line, sizeof(line), fmt, args);
	va_end(args);
	if (n < 0 || (size_t)n >= sizeof(line)) {
		errno = EOVERFLOW;
		hp_die("events channel: a line of %d bytes", n);
	}
	tell_line(line, (size_t)n);
}

void check_name(const char *name)
{
	bool fine = *name && strlen(name) < HP_NAME;

	for (const char *at = name; *at; at++)
		fine = fine && *at > ' ' && *at < 0x7f;
	if (!fine) {
		errno = EINVAL;
		hp_die("name '%s' is empty, longer than %d bytes or contains a blank", name, HP_NAME - 1);
	}
}
