/* SPDX-License-Identifier: GPL-2.0-only */
/* Frames between the host and the agent: "VERB ID LENGTH\n" and LENGTH bytes (docs/protocol.md). */
#ifndef HUGEPFN_FRAMES_H
#define HUGEPFN_FRAMES_H

#include <stdbool.h>
#include <stddef.h>

#ifndef PAYLOAD_MAX /* tests make it smaller */
#define PAYLOAD_MAX ((size_t)256 << 20) /* of one frame, as in harness/guest/protocol.py */
#endif
#define HEADER_MAX 128			/* its newline included, as in that file */

enum link {
	LINK_UP,
	LINK_CLOSED, /* the host is gone */
	LINK_FAILED, /* the agent cannot continue, and the host was told why */
};

struct request {
	char verb[HEADER_MAX];
	unsigned int id;
	char *payload; /* a NUL follows its last byte */
	size_t length;
};

void open_frames(int fd, bool lossy);

/* Unless it is LINK_UP, nothing is read or sent any more. */
enum link link_state(void);

/* The next request, whose payload the caller frees; false if there is none, because it was refused or the link ended. */
bool receive_request(struct request *request);

void send_frame(const char *verb, unsigned int id, const void *payload, size_t length);
void send_text(const char *verb, unsigned int id, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* How a program ended: STATUS is that of waitpid(2). */
void send_exit(unsigned int id, int status);

/* The answer to a request that fails: what was tried, and ERROR, an errno. */
void refuse(unsigned int id, int error, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Sends the last frame: the host then knows that neither the kernel nor a program failed, but the agent. */
void fail(int error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Writes everything, or returns false with errno set. */
bool write_all(int fd, const void *data, size_t length);

#endif
