/* SPDX-License-Identifier: GPL-2.0-only */
/* The programs that run for the host: their output goes to the host, and its input goes to them. */
#ifndef HUGEPFN_JOBS_H
#define HUGEPFN_JOBS_H

#include <poll.h>

#include "agent.h"
#include "spawn.h"

#define JOBS 16
#define JOB_POLLS (3 * JOBS)

void start_job(const struct agent *agent, struct request *request, enum input input);
void input_for_job(struct request *request);
void signal_job(struct request *request);
void hold_job(struct request *request, bool held);

/* What poll(2) has to watch for the jobs, and what to do when something is ready. */
void watch_jobs(struct pollfd fds[JOB_POLLS]);
void serve_jobs(const struct pollfd fds[JOB_POLLS]);

/* Reaps every child that has ended, orphans included. */
void reap(void);

#endif
