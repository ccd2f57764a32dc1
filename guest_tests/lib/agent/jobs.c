// SPDX-License-Identifier: GPL-2.0-only
/* Carries input and output of the host's programs, and reports how they end. */
#include "jobs.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "terminal.h"

struct job {
	unsigned int id;
	struct child child; /* its descriptors are -1 when they are at their end */
	bool held;	    /* the host has no room for more of its output: it stays in the pipes until the job's end */
	bool input_ends;    /* after what is pending */
	char *pending;      /* what the host sent and the job has not read yet */
	size_t length, taken;
};

static struct job jobs[JOBS]; /* without a pid: free */

static struct job *find_job(unsigned int id)
{
	for (int i = 0; i < JOBS; i++)
		if (jobs[i].child.pid && jobs[i].id == id)
			return &jobs[i];
	return NULL;
}

void start_job(const struct agent *agent, struct request *request, enum input input)
{
	struct job *job = NULL;
	struct child child;

	for (int i = 0; i < JOBS && !job; i++)
		if (!jobs[i].child.pid)
			job = &jobs[i];
	if (!job) {
		refuse(request->id, EAGAIN, "%d jobs are running already", JOBS);
		return;
	}
	if (!spawn(agent, request, input, &child))
		return;
	*job = (struct job){ .id = request->id, .child = child };
	send_text("started", request->id, "%d", child.pid);
}

static void close_input(struct job *job)
{
	if (job->child.input >= 0)
		close(job->child.input);
	free(job->pending);
	job->child.input = -1;
	job->pending = NULL;
	job->length = job->taken = 0;
}

/* Writes as much of the pending input as a job takes now, and tells the host how many bytes those were. */
static void feed(struct job *job)
{
	size_t before = job->taken;

	while (job->child.input >= 0 && job->taken < job->length) {
		ssize_t n = write(job->child.input, job->pending + job->taken, job->length - job->taken);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) { /* it reads no more: the rest is dropped */
			job->input_ends = true;
			n = (ssize_t)(job->length - job->taken);
		}
		job->taken += (size_t)n;
	}
	if (job->taken > before)
		send_text("took", job->id, "%zu", job->taken - before);
	if (job->taken < job->length)
		return;
	job->length = job->taken = 0;
	if (job->input_ends && job->child.input >= 0) {
		shutdown(job->child.input, SHUT_WR); /* the other direction of the socket is the job's output */
		close_input(job);
	}
}

/* More for a job's standard input; an empty payload ends it. */
void input_for_job(struct request *request)
{
	struct job *job = find_job(request->id);
	size_t rest;
	char *joined;

	if (!job || job->child.input < 0) { /* too late: it has ended, or closed its input */
		send_text("took", request->id, "%zu", request->length);
		return;
	}
	if (!request->length)
		job->input_ends = true;
	rest = job->length - job->taken;
	joined = malloc(rest + request->length + 1);
	if (!joined) {
		fail(ENOMEM, "%zu bytes of input for a program", rest + request->length);
		return;
	}
	if (rest)
		memcpy(joined, job->pending + job->taken, rest);
	memcpy(joined + rest, request->payload, request->length);
	free(job->pending);
	job->pending = joined;
	job->length = rest + request->length;
	job->taken = 0;
	feed(job);
}

/* Passes on some of what a job has printed: at most MOST bytes. Returns how many. */
static size_t pump(struct job *job, int which, size_t most)
{
	char buffer[16384];
	ssize_t n = read(job->child.output[which], buffer, most < sizeof(buffer) ? most : sizeof(buffer));

	if (n > 0) {
		send_frame(which ? "err" : "out", job->id, buffer, (size_t)n);
		return (size_t)n;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	close(job->child.output[which]);
	job->child.output[which] = -1;
	return 0;
}

/* Sends what is in the pipes now before the exit. Does not wait for other processes that hold them open or write. */
static void drain(struct job *job)
{
	for (int which = 0; which < 2; which++) {
		int left = 0;

		if (job->child.output[which] < 0)
			continue;
		ioctl(job->child.output[which], FIONREAD, &left);
		for (size_t n = 1; left > 0 && n; left -= (int)n)
			n = pump(job, which, (size_t)left);
		if (job->child.output[which] >= 0)
			close(job->child.output[which]);
		job->child.output[which] = -1;
	}
}

static void end_job(struct job *job, int status)
{
	drain(job);
	close_input(job);
	send_exit(job->id, status);
	job->child.pid = 0;
}

void reap(void)
{
	for (;;) {
		siginfo_t info = { .si_pid = 0 };
		struct job *job = NULL;
		int status;

		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid)
			return;
		for (int i = 0; i < JOBS; i++)
			if (jobs[i].child.pid == info.si_pid)
				job = &jobs[i];
		if (job) /* as long as it is a zombie, its process group ID is not reused */
			kill(-info.si_pid, SIGKILL);
		waitpid(info.si_pid, &status, 0);
		if (job)
			end_job(job, status);
		else
			shell_ended(info.si_pid, status);
	}
}

/* PAYLOAD: the number of a signal. It is no error if the job has just ended. */
void signal_job(struct request *request)
{
	struct job *job = find_job(request->id);
	int number = atoi(request->payload);

	if (job && (number < 1 || kill(-job->child.pid, number)))
		refuse(request->id, number < 1 ? EINVAL : errno, "signal '%s'", request->payload);
}

void hold_job(struct request *request, bool held)
{
	struct job *job = find_job(request->id);

	if (job)
		job->held = held;
}

void watch_jobs(struct pollfd fds[JOB_POLLS])
{
	for (int i = 0; i < JOBS; i++, fds += 3) {
		const struct job *job = &jobs[i];
		bool waits = job->child.pid && job->taken < job->length;
		bool speaks = job->child.pid && !job->held;

		for (int which = 0; which < 2; which++)
			fds[which] = (struct pollfd){ speaks ? job->child.output[which] : -1, POLLIN, 0 };
		fds[2] = (struct pollfd){ waits ? job->child.input : -1, POLLOUT, 0 };
	}
}

void serve_jobs(const struct pollfd fds[JOB_POLLS])
{
	for (int i = 0; i < JOBS; i++, fds += 3) {
		for (int which = 0; which < 2; which++)
			if (fds[which].revents)
				pump(&jobs[i], which, SIZE_MAX);
		if (fds[2].revents)
			feed(&jobs[i]);
	}
}
