/* SPDX-License-Identifier: GPL-2.0-only */
/* Starts a program for the host, as a child of the agent. */
#ifndef HUGEPFN_SPAWN_H
#define HUGEPFN_SPAWN_H

#include <stddef.h>
#include <sys/types.h>

#include "agent.h"

/* What a program reads as its standard input. */
enum input {
	INPUT_NULL,
	INPUT_PIPE,
	INPUT_SOCKET, /* its standard output as well: one connection, for a server started as inetd does it */
};

struct child {
	pid_t pid;
	int output[2]; /* our ends of stdout and stderr */
	int input;     /* our end of stdin, which never blocks; -1 if it is /dev/null */
};

/*
 * Starts what REQUEST asks for: NUL-terminated words, NAME=VALUE for the environment, then an empty word, then argv. If
 * it returns true, the child leads a session and a process group of its own, so that a signal to the group reaches it.
 * If it returns false, it has refused the request.
 */
bool spawn(const struct agent *agent, struct request *request, enum input input, struct child *child);

/* In a child: signals as a program expects them. */
void as_a_program(void);

#endif
