/* SPDX-License-Identifier: GPL-2.0-only */
/* An interactive shell, on a terminal of its own. */
#ifndef HUGEPFN_TERMINAL_H
#define HUGEPFN_TERMINAL_H

#include <sys/types.h>

#include "agent.h"

void start_shell(const struct agent *agent, struct request *request);
void size_shell(const struct agent *agent, struct request *request);

/* A child has ended, with STATUS as of waitpid(); false if it is not the shell. */
bool shell_ended(pid_t pid, int status);

#endif
