/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's log for the host. */
#ifndef HUGEPFN_KMSG_H
#define HUGEPFN_KMSG_H

#include "agent.h"

void read_kmsg(const struct agent *agent, struct request *request);

#endif
