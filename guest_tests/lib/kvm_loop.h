/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A vCPU that keeps running, in a thread of its own: it loads and stores one word over and over, and leaves KVM_RUN only
 * when KVM has to give up. KVM itself tells of each round (KVM_IOEVENTFD), so that nobody has to poll.
 */
#ifndef HUGEPFN_KVM_LOOP_H
#define HUGEPFN_KVM_LOOP_H

#include <pthread.h>

#include "kvm.h"

struct hp_vm_loop {
	struct hp_vm *vm;
	uint64_t gpa;
	pthread_t thread;
	int round_fd, ended_fd; /* eventfds: a round is done; KVM_RUN has returned */
	struct hp_vm_exit how;
};

/* Starts it, and returns when the vCPU has gone round once. Dies if KVM_RUN returns before. */
void hp_vm_loop_start(struct hp_vm_loop *loop, struct hp_vm *vm, uint64_t gpa);

/*
 * Waits until the vCPU has left KVM_RUN by itself, or has begun a round after this call and finished it. In the latter
 * case ends KVM_RUN: EINTR. Returns how it ended.
 */
struct hp_vm_exit hp_vm_loop_end(struct hp_vm_loop *loop);

#endif
