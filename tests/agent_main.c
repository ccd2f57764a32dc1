// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's agent as a program of the host, for test_agent_in_c.py: agent_main FRAMES EVENTS KMSG LOSSY JOBS_DIR
 * TERMINAL SHELL. The first three are descriptors; KMSG may be a negative errno instead. Exits with 0 once the host has
 * closed its end, with 3 if the agent could not continue.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "lib/agent/agent.h"

int main(int argc, char **argv)
{
	static char *words[] = { "sh", "-i", NULL };
	struct agent agent = { .shell_argv = words };

	if (argc != 8)
		return 2;
	agent.frames = atoi(argv[1]);
	agent.events = atoi(argv[2]);
	agent.kmsg = atoi(argv[3]);
	agent.kmsg_error = -agent.kmsg;
	agent.lossy = atoi(argv[4]);
	agent.jobs_dir = argv[5];
	agent.terminal = argv[6];
	agent.shell = argv[7];
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* as PID 1 is */
	return serve(&agent, "channel=virtio\n") == LINK_CLOSED ? 0 : 3;
}
