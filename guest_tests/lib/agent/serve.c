// SPDX-License-Identifier: GPL-2.0-only
/* Waits for the host, for its programs and for their exit, and answers requests. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "agent.h"
#include "files.h"
#include "jobs.h"
#include "kmsg.h"
#include "terminal.h"

static void answer(const struct agent *agent, struct request *request)
{
	const char *verb = request->verb;

	if (!strcmp(verb, "ping"))
		send_text("done", request->id, "pong");
	else if (!strcmp(verb, "put"))
		put_file(request);
	else if (!strcmp(verb, "get"))
		get_file(request);
	else if (!strcmp(verb, "kmsg"))
		read_kmsg(agent, request);
	else if (!strcmp(verb, "run"))
		start_job(agent, request, INPUT_NULL);
	else if (!strcmp(verb, "pipe"))
		start_job(agent, request, INPUT_PIPE);
	else if (!strcmp(verb, "socket"))
		start_job(agent, request, INPUT_SOCKET);
	else if (!strcmp(verb, "in"))
		input_for_job(request);
	else if (!strcmp(verb, "kill"))
		signal_job(request);
	else if (!strcmp(verb, "hold"))
		hold_job(request, true);
	else if (!strcmp(verb, "resume"))
		hold_job(request, false);
	else if (!strcmp(verb, "shell"))
		start_shell(agent, request);
	else if (!strcmp(verb, "size"))
		size_shell(agent, request);
	else
		refuse(request->id, ENOSYS, "request '%s'", verb);
}

/* Occupies descriptors up to 3, which a job gets for its own, so that none of ours is among them. */
static void keep_low_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd < 3);
	if (fd > 3)
		close(fd);
}

/* A descriptor on which poll(2) sees that a child has ended. */
static int watch_children(void)
{
	sigset_t child;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	return signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
}

enum link serve(const struct agent *agent, const char *ready)
{
	struct signalfd_siginfo info;
	struct request request;
	int children;

	keep_low_descriptors();
	children = watch_children();
	open_frames(agent->frames, agent->lossy);
	send_frame("ready", 0, ready, strlen(ready));
	if (children < 0)
		fail(errno, "signalfd");
	while (link_state() == LINK_UP) {
		struct pollfd fds[2 + JOB_POLLS] = { { agent->frames, POLLIN, 0 }, { children, POLLIN, 0 } };

		watch_jobs(fds + 2);
		if (poll(fds, 2 + JOB_POLLS, -1) < 0) {
			if (errno != EINTR)
				fail(errno, "poll");
			continue;
		}
		serve_jobs(fds + 2);
		if (fds[1].revents && read(children, &info, sizeof(info)) > 0)
			reap();
		if (fds[0].revents && receive_request(&request)) {
			answer(agent, &request);
			free(request.payload);
		}
	}
	close(children);
	return link_state();
}
