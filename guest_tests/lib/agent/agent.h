/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The agent: runs programs for the host and sends it files and the kernel's log, as docs/protocol.md describes. It
 * needs nothing else of PID 1, so it also runs on the host (tests/agent_main.c).
 */
#ifndef HUGEPFN_AGENT_H
#define HUGEPFN_AGENT_H

#include <stdbool.h>

#include "frames.h"

struct agent {
	int frames;	      /* requests from the host, and the agent's answers */
	bool lossy;	      /* FRAMES drops what it has no room for, so the host has to know how much was read */
	int events;	      /* descriptor 3 of every job */
	int kmsg;	      /* /dev/kmsg, or -1 */
	int kmsg_error;	      /* errno, if it is -1 */
	const char *jobs_dir; /* the working directory of jobs; NULL: that of the agent */
	const char *terminal; /* of the shell */
	const char *shell;    /* a program */
	char **shell_argv;    /* its arguments */
};

/* Sends READY and serves the host until the link ends. Returns why it ended. */
enum link serve(const struct agent *agent, const char *ready);

#endif
