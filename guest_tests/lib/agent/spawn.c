// SPDX-License-Identifier: GPL-2.0-only
/* Starts programs with the channels that the host asked for. */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_FD 3
#define WORDS_MAX 255 /* of argv */

void as_a_program(void)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
}

static void close_pair(int pair[2])
{
	for (int i = 0; i < 2; i++)
		if (pair[i] >= 0)
			close(pair[i]);
}

/* The child's ends in THEIRS (stdin, stdout, stderr), ours in CHILD. On failure false, with errno set. */
static bool open_channels(struct child *child, enum input input, int theirs[3])
{
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 };
	bool opened = !pipe2(err, O_CLOEXEC);

	if (opened && input == INPUT_SOCKET) {
		opened = !socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in);
		if (opened) {
			out[0] = fcntl(in[1], F_DUPFD_CLOEXEC, 0);
			out[1] = fcntl(in[0], F_DUPFD_CLOEXEC, 0);
			opened = out[0] >= 0 && out[1] >= 0;
		}
	} else if (opened) {
		opened = !pipe2(out, O_CLOEXEC) && (input == INPUT_NULL || !pipe2(in, O_CLOEXEC));
	}
	if (!opened) {
		int error = errno;

		close_pair(in);
		close_pair(out);
		close_pair(err);
		errno = error;
		return false;
	}
	if (in[1] >= 0)
		fcntl(in[1], F_SETFL, O_NONBLOCK);
	*child = (struct child){ .output = { out[0], err[0] }, .input = in[1] };
	theirs[0] = in[0];
	theirs[1] = out[1];
	theirs[2] = err[1];
	return true;
}

static void close_channels(int channels[3])
{
	for (int i = 0; i < 3; i++)
		if (channels[i] >= 0)
			close(channels[i]);
}

/* CHANNELS are above EVENTS_FD: serve() occupies those up to it. LEADS is closed once we lead our process group. */
static _Noreturn void become(const struct agent *agent, const char *environment, char **argv, int channels[3], int leads)
{
	int in = channels[0], out = channels[1], err = channels[2];

	as_a_program();
	setsid();
	close(leads);
	for (; *environment; environment += strlen(environment) + 1)
		putenv((char *)environment);
	if (getenv("HUGEPFN_ONE_STREAM")) /* the order of the output on both is kept */
		err = out;
	if (in < 0)
		in = open("/dev/null", O_RDONLY);
	if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(127);
	if (dup2(agent->events, EVENTS_FD) < 0 || fcntl(EVENTS_FD, F_SETFD, 0)) /* they may be the same already */
		_exit(127);
	close_range(EVENTS_FD + 1, ~0U, 0);
	setenv("HUGEPFN_EVENTS_FD", "3", 1);
	if (agent->jobs_dir && chdir(agent->jobs_dir))
		_exit(127);
	execvp(argv[0], argv);
	fprintf(stderr, "exec %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Stores the words behind the empty one in ARGV. Returns their number, of which WORDS_MAX are stored. */
static size_t find_argv(struct request *request, char **argv)
{
	char *at = request->payload, *end = at + request->length;
	size_t n = 0;

	while (at < end && *at)
		at += strlen(at) + 1;
	if (at < end)
		at++;
	for (; at < end; at += strlen(at) + 1, n++)
		if (n < WORDS_MAX)
			argv[n] = at;
	argv[n < WORDS_MAX ? n : WORDS_MAX] = NULL;
	return n;
}

bool spawn(const struct agent *agent, struct request *request, enum input input, struct child *child)
{
	char *argv[WORDS_MAX + 1], nothing;
	size_t words = find_argv(request, argv);
	int theirs[3], leads[2] = { -1, -1 }, error;

	if (!words || words > WORDS_MAX) {
		refuse(request->id, words ? E2BIG : EINVAL, "a program with %zu words, expected 1 to %d", words, WORDS_MAX);
		return false;
	}
	if (!open_channels(child, input, theirs)) {
		refuse(request->id, errno, "a job's channels%s",
		       input == INPUT_SOCKET ? " (does this kernel have CONFIG_UNIX?)" : "");
		return false;
	}
	child->pid = pipe2(leads, O_CLOEXEC) ? -1 : fork();
	error = errno;
	if (!child->pid)
		become(agent, request->payload, argv, theirs, leads[1]);
	close_channels(theirs);
	if (child->pid < 0) {
		close_channels((int[]){ child->output[0], child->output[1], child->input });
		close_pair(leads);
		refuse(request->id, error, "fork");
		return false;
	}
	close(leads[1]);
	while (read(leads[0], &nothing, 1) < 0 && errno == EINTR)
		; /* until the child has closed it */
	close(leads[0]);
	return true;
}
