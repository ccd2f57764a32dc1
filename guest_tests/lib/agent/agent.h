/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The agent: runs programs for the host and sends it files and the kernel's log, as docs/protocol.md describes. It
 * needs nothing of PID 1 but this, and so it runs on the host as well (tests/agent_main.c).
 */
#ifndef HUGEPFN_AGENT_H
#define HUGEPFN_AGENT_H

#include <stdbool.h>

#include "frames.h"

struct agent {
	int frames;	      /* the host's requests, and what the agent says */
	bool lossy;	      /* what FRAMES has no room for is lost, so the host has to know how much was read */
	int events;	      /* every job has it as descriptor 3 */
	int kmsg;	      /* /dev/kmsg, or -1 */
	int kmsg_error;	      /* why there is none */
	const char *jobs_dir; /* where jobs begin; NULL: where the agent is */
	const char *terminal; /* of the shell */
	const char *shell;    /* a program, */
	char **shell_argv;    /* and its words */
};

/* Says READY and serves the host, for as long as there is one. Returns why it ended. */
enum link serve(const struct agent *agent, const char *ready);

#endif
