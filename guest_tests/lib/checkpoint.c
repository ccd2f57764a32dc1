// SPDX-License-Identifier: GPL-2.0-only
/* Checkpoints: tell the host who we are and what we mapped, and wait where it can look at us. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepfn.h"
#include "shared.h"

#define HP_CHILDREN 64
#define HP_PROCESS_NAME "HUGEPFN_PROCESS_NAME" /* environment: what hp_start() registers as; "parent" if unset */

static int kmsg_fd = -1;
static _Atomic uint64_t sequence; /* one for all processes that share this memory */

/* The registered children of this process, so that a wait for one notices when another dies. */
static struct {
	pid_t pid;
	int pidfd;
	char name[HP_NAME];
} children[HP_CHILDREN];

/*
 * Reports where we are and waits in user mode until the host changes the release word. Until then its value differs
 * from that of any other process and moment, so that page tables that have it at this address are this process's.
 */
static void spin(const char *verb, const char *name, pid_t parent)
{
	volatile uint64_t release = ((uint64_t)getpid() << 32) | (uint32_t)(2 * ++sequence + 1);
	uint64_t held = release;

	if (!host_listens())
		return;
	tell("%s %s %d %d %" PRIx64 " %" PRIx64 "\n", verb, name, getpid(), parent, (uint64_t)&release, held);
	send_told();
	while (release == held)
		__builtin_ia32_pause();
}

/* The process inherits the mappings of PARENT; of none if that is 0. */
static void register_child_of(pid_t parent, const char *name)
{
	struct shared_process *slot = NULL;
	pid_t pid = getpid();

	check_name(name);
	lock_shared();
	for (int i = 0; i < HP_PROCESSES && !slot; i++)
		if (!shared->process[i].pid)
			slot = &shared->process[i];
	if (!slot) {
		unlock_shared();
		errno = ENOSPC;
		hp_die("more than %d processes", HP_PROCESSES);
	}
	slot->pid = pid;
	strcpy(slot->name, name);
	for (int i = 0, free_slot = 0; parent && i < HP_MAPPINGS; i++) {
		if (shared->mapping[i].owner != parent)
			continue;
		while (free_slot < HP_MAPPINGS && shared->mapping[free_slot].owner)
			free_slot++;
		if (free_slot == HP_MAPPINGS) {
			unlock_shared();
			errno = ENOSPC;
			hp_die("more than %d mappings", HP_MAPPINGS);
		}
		shared->mapping[free_slot] = shared->mapping[i];
		shared->mapping[free_slot].owner = pid;
	}
	unlock_shared();
	spin("process", name, parent);
}

void hp_register(const char *name)
{
	register_child_of(getppid(), name);
}

/* A page of ordinary memory: the walk proves nothing unless it agrees with pagemap on this page at every stop. */
static void calibrate(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		hp_die("mmap of the calibration page");
	hp_write(page, 1);
	hp_map(&(struct hp_mapping){ .name = "calibration",
				     .addr = page,
				     .length = 4096,
				     .prot = PROT_READ | PROT_WRITE,
				     .backing = HP_RAM,
				     .pagemap_pages = 1 });
}

/*
 * Faults in both ends of stack and heap before page tables are counted: later growth could need a new page table. Each
 * is smaller than what one table covers.
 */
static void grow_stack_and_heap(void)
{
	volatile char deep[KIB(256)], *heap = malloc(KIB(96));

	if (!heap)
		hp_die("malloc");
	deep[0] = deep[sizeof(deep) - 1] = 1;
	heap[0] = heap[KIB(96) - 1] = 1;
	free((void *)heap);
}

struct hp_options hp_start(int argc, char **argv)
{
	struct hp_options options = { .level = HP_PTE, .argc = 1, .argv = argv };
	const char *name = getenv(HP_PROCESS_NAME);

	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--level=", 8)) {
			argv[options.argc++] = argv[i];
			continue;
		}
		options.level = hp_level_of("--level=", argv[i] + 8);
	}
	kmsg_fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	open_events();
	register_child_of(0, name ? name : "parent");
	calibrate();
	grow_stack_and_heap();
	return options;
}

static void remember_child(pid_t pid, const char *name)
{
	for (int i = 0; i < HP_CHILDREN; i++) {
		if (children[i].pid)
			continue;
		children[i].pid = pid;
		children[i].pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		snprintf(children[i].name, sizeof(children[i].name), "%s", name);
		if (children[i].pidfd < 0)
			hp_die("pidfd_open");
		return;
	}
	errno = ENOSPC;
	hp_die("more than %d children", HP_CHILDREN);
}

static void forget_child(int i)
{
	close(children[i].pidfd);
	children[i].pid = 0;
}

/* A child that a signal killed will open no gate: report it instead of waiting. It can still be reaped. */
static void notice_end_of_child(int i)
{
	siginfo_t info = { .si_pid = 0 };

	if (waitid(P_PID, (id_t)children[i].pid, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid)
		return;
	if (info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED) {
		errno = 0;
		hp_die("%s (pid %d) was killed by signal %d (SIG%s)", children[i].name, children[i].pid, info.si_status,
		       hp_signal_name(info.si_status));
	}
	forget_child(i);
}

pid_t hp_fork(const char *name)
{
	struct hp_gate registered;
	pid_t pid;

	hp_gate_init(&registered);
	pid = fork();
	if (pid < 0)
		hp_die("fork");
	if (!pid) {
		memset(children, 0, sizeof(children)); /* they are the parent's */
		hp_register(name);
		hp_gate_open(&registered);
	} else {
		remember_child(pid, name);
		hp_gate_wait(&registered);
	}
	close(registered.fd[0]);
	close(registered.fd[1]);
	return pid;
}

static void forget(pid_t pid)
{
	lock_shared();
	for (int i = 0; i < HP_PROCESSES; i++)
		if (shared->process[i].pid == pid)
			shared->process[i].pid = 0;
	for (int i = 0; i < HP_MAPPINGS; i++)
		if (shared->mapping[i].owner == pid)
			shared->mapping[i].owner = 0;
	unlock_shared();
}

_Noreturn void hp_exec(const char *name, char *const argv[])
{
	check_name(name);
	if (setenv(HP_PROCESS_NAME, name, 1))
		hp_die("setenv");
	forget(getpid());
	print_checkpoints(); /* the program that follows has another table */
	tell("gone %d\n", getpid());
	execv("/proc/self/exe", argv);
	hp_die("exec");
}

int hp_reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			hp_die("waitpid %d", pid);
	for (int i = 0; i < HP_CHILDREN; i++)
		if (children[i].pid == pid)
			forget_child(i);
	forget(pid);
	tell("gone %d\n", pid);
	return status;
}

/* One write: each is a record of /dev/kmsg. dprintf() would try to seek, which /dev/kmsg cannot. */
static void log_checkpoint(const char *name)
{
	char line[128];
	int length = snprintf(line, sizeof(line), "<5>hugepfn: checkpoint %s pid %d\n", name, getpid());

	if (kmsg_fd >= 0 && write(kmsg_fd, line, (size_t)length) != length)
		hp_die("/dev/kmsg");
}

void checkpoint(const char *name)
{
	check_name(name);
	log_checkpoint(name);
	note_checkpoint(name);
	gather_told();
	tell_pagemaps();
	tell_vms();
	tell_iommus();
	spin("checkpoint", name, getppid());
}

void hp_gate_init(struct hp_gate *gate)
{
	if (pipe2(gate->fd, O_CLOEXEC))
		hp_die("pipe");
}

void hp_gate_open(const struct hp_gate *gate)
{
	if (write(gate->fd[1], "", 1) != 1)
		hp_die("gate open");
}

void hp_gate_wait(const struct hp_gate *gate)
{
	struct pollfd fds[1 + HP_CHILDREN];
	char byte;

	for (;;) {
		fds[0] = (struct pollfd){ .fd = gate->fd[0], .events = POLLIN };
		for (int i = 0; i < HP_CHILDREN; i++)
			fds[1 + i] = (struct pollfd){ .fd = children[i].pid ? children[i].pidfd : -1, .events = POLLIN };
		if (poll(fds, 1 + HP_CHILDREN, -1) < 0 && errno != EINTR)
			hp_die("gate poll");
		if (fds[0].revents)
			break;
		for (int i = 0; i < HP_CHILDREN; i++)
			if (fds[1 + i].revents && children[i].pid)
				notice_end_of_child(i);
	}
	if (read(gate->fd[0], &byte, 1) != 1)
		hp_die("gate wait");
}
