// SPDX-License-Identifier: GPL-2.0-only
/* A vCPU that keeps running, in a thread of its own. */
#include <errno.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "kvm_loop.h"

static void *run_on(void *argument)
{
	struct hp_vm_loop *loop = argument;

	loop->how = hp_vm_enter(loop->vm, HP_VM_LOOP, loop->gpa, 0);
	if (eventfd_write(loop->ended_fd, 1))
		hp_die("eventfd");
	return NULL;
}

/* Waits until the vCPU has gone round COUNT times or has left KVM_RUN. Returns whether it goes round. */
static bool goes_round(const struct hp_vm_loop *loop, eventfd_t count)
{
	struct pollfd events[] = { { .fd = loop->round_fd, .events = POLLIN }, { .fd = loop->ended_fd, .events = POLLIN } };
	eventfd_t more, rounds = 0;

	while (rounds < count) {
		if (poll(events, 2, -1) < 0)
			hp_die("poll");
		if (events[0].revents && !eventfd_read(loop->round_fd, &more))
			rounds += more;
		else if (events[1].revents)
			return false;
	}
	return true;
}

static void interrupted(int number)
{
	(void)number;
}

static void make_events(struct hp_vm_loop *loop)
{
	struct kvm_ioeventfd round = { .addr = HP_VM_PORT, .len = 1, .flags = KVM_IOEVENTFD_FLAG_PIO };
	struct sigaction action = { .sa_handler = interrupted };

	loop->round_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	loop->ended_fd = eventfd(0, EFD_CLOEXEC);
	if (loop->round_fd < 0 || loop->ended_fd < 0)
		hp_die("eventfd");
	round.fd = loop->round_fd;
	if (ioctl(loop->vm->vm_fd, KVM_IOEVENTFD, &round))
		hp_die("KVM_IOEVENTFD");
	if (sigaction(SIGUSR1, &action, NULL)) /* without SA_RESTART: KVM_RUN returns */
		hp_die("sigaction");
}

void hp_vm_loop_start(struct hp_vm_loop *loop, struct hp_vm *vm, uint64_t gpa)
{
	*loop = (struct hp_vm_loop){ .vm = vm, .gpa = gpa };
	make_events(loop);
	errno = pthread_create(&loop->thread, NULL, run_on, loop);
	if (errno)
		hp_die("pthread_create");
	if (!goes_round(loop, 1)) {
		errno = loop->how.error;
		hp_die("the vCPU did not run: %s", hp_vm_ended(loop->how));
	}
}

struct hp_vm_exit hp_vm_loop_end(struct hp_vm_loop *loop)
{
	eventfd_t before;

	/* The first round that is counted from now on may have begun before. */
	if (eventfd_read(loop->round_fd, &before) && errno != EAGAIN)
		hp_die("eventfd");
	if (goes_round(loop, 2)) {
		loop->vm->run->immediate_exit = 1; /* also where the signal comes before KVM_RUN or after it */
		pthread_kill(loop->thread, SIGUSR1);
	}
	errno = pthread_join(loop->thread, NULL);
	if (errno)
		hp_die("pthread_join");
	loop->vm->run->immediate_exit = 0;
	close(loop->round_fd); /* which takes it from KVM as well */
	close(loop->ended_fd);
	return loop->how;
}
