// SPDX-License-Identifier: GPL-2.0-only
/* Reads requests from the host, and sends it frames. */
#include "frames.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ACKNOWLEDGED 2048 /* bytes, a quarter of the host's window (_UART_WINDOW_BYTES of the host's agent.py) */

static struct {
	int fd;
	bool lossy;
	size_t unacknowledged;
	enum link state;
} host;

void open_frames(int fd, bool lossy)
{
	host.fd = fd;
	host.lossy = lossy;
	host.unacknowledged = 0;
	host.state = LINK_UP;
}

enum link link_state(void)
{
	return host.state;
}

bool write_all(int fd, const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t n = write(fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		at += n;
		length -= (size_t)n;
	}
	return true;
}

static void send_bytes(const void *data, size_t length)
{
	if (host.state == LINK_UP && !write_all(host.fd, data, length))
		host.state = LINK_CLOSED;
}

void send_frame(const char *verb, unsigned int id, const void *payload, size_t length)
{
	static char frame[66000];
	size_t n = (size_t)snprintf(frame, HEADER_MAX, "%s %u %zu\n", verb, id, length);

	if (length > sizeof(frame) - n) {
		send_bytes(frame, n);
		send_bytes(payload, length);
		return;
	}
	if (length)
		memcpy(frame + n, payload, length);
	send_bytes(frame, n + length);
}

static size_t print(char *text, size_t size, const char *fmt, va_list args)
{
	int n = vsnprintf(text, size, fmt, args);

	return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}

void send_text(const char *verb, unsigned int id, const char *fmt, ...)
{
	char text[4096];
	va_list args;

	va_start(args, fmt);
	send_frame(verb, id, text, print(text, sizeof(text), fmt, args));
	va_end(args);
}

void send_exit(unsigned int id, int status)
{
	if (WIFSIGNALED(status))
		send_text("exit", id, "signal %d", WTERMSIG(status));
	else
		send_text("exit", id, "status %d", WEXITSTATUS(status));
}

static void send_error(const char *verb, unsigned int id, int error, const char *fmt, va_list args)
{
	char text[4096 + 512]; /* a path and what was tried with it */

	print(text, sizeof(text), fmt, args);
	send_text(verb, id, "%d %.*s: %s", error, 4000, text, strerror(error));
}

void refuse(unsigned int id, int error, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	send_error("error", id, error, fmt, args);
	va_end(args);
}

void fail(int error, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	send_error("failed", 0, error, fmt, args);
	va_end(args);
	if (host.state == LINK_UP)
		host.state = LINK_FAILED;
}

/*
 * The UARTs have no flow control: QEMU's has no wire for RTS, so what the tty layer has no room for is dropped
 * (drivers/tty/tty_buffer.c, tty_buffer_request_room()). The host sends no more than we have room for.
 */
static void acknowledge(size_t length)
{
	host.unacknowledged += length;
	if (!host.lossy || host.unacknowledged < ACKNOWLEDGED)
		return;
	send_text("read", 0, "%zu", host.unacknowledged);
	host.unacknowledged = 0;
}

static bool read_exact(void *data, size_t length)
{
	char *at = data;

	while (length && host.state == LINK_UP) {
		ssize_t n = read(host.fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			host.state = LINK_CLOSED;
			break;
		}
		acknowledge((size_t)n);
		at += n;
		length -= (size_t)n;
	}
	return !length;
}

static void discard(size_t length)
{
	char buffer[4096];

	for (size_t n; length; length -= n) {
		n = length < sizeof(buffer) ? length : sizeof(buffer);
		if (!read_exact(buffer, n))
			return;
	}
}

/* Parses a decimal number of at most MOST, and moves AT behind it. */
static bool number(char **at, unsigned long most, unsigned long *value)
{
	if (**at < '0' || **at > '9')
		return false;
	errno = 0;
	*value = strtoul(*at, at, 10);
	return !errno && *value <= most;
}

/* Parses "VERB ID LENGTH" without its newline; END is where that was. */
static bool parse_header(struct request *request, const char *end)
{
	unsigned long id, length;
	char *at = strchr(request->verb, ' ');

	if (!at)
		return false;
	*at++ = 0;
	if (!number(&at, UINT_MAX, &id) || *at++ != ' ' || !number(&at, ULONG_MAX, &length) || at != end)
		return false;
	request->id = (unsigned int)id;
	request->length = length;
	return true;
}

bool receive_request(struct request *request)
{
	char header[HEADER_MAX];
	size_t n = 0;

	do {
		if (n == sizeof(header)) {
			fail(EPROTO, "the host sent no header in %zu bytes", n);
			return false;
		}
		if (!read_exact(&header[n], 1))
			return false;
	} while (header[n++] != '\n');
	header[n - 1] = 0;
	memcpy(request->verb, header, n);
	if (!parse_header(request, request->verb + n - 1)) {
		fail(EPROTO, "the host sent the header '%s', expected 'VERB ID LENGTH'", header);
		return false;
	}
	if (request->length > PAYLOAD_MAX) {
		fail(EMSGSIZE, "the host sent a frame of %zu bytes, at most %zu are allowed", request->length, PAYLOAD_MAX);
		return false;
	}
	request->payload = malloc(request->length + 1);
	if (!request->payload) {
		discard(request->length);
		refuse(request->id, ENOMEM, "a request of %zu bytes", request->length);
		return false;
	}
	if (!read_exact(request->payload, request->length)) {
		free(request->payload);
		return false;
	}
	request->payload[request->length] = 0;
	return true;
}
