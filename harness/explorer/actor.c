// SPDX-License-Identifier: GPL-2.0-only
/*
 * The actor of the explorer: does one operation after another, each in the process that it names, and lets the host
 * look after each. The operations are the arguments, in the words of harness/model/operation.py; "," begins another
 * sequence, which has processes of its own; "--bar=N" names the BAR, default 2.
 *
 * This process only gives orders. Processes 0 to 3 are its children, whoever forked them, so that one that dies can be
 * reaped. Each has the arena, a fixed range of addresses in which nothing else is.
 *
 * At the end of sequence K it reports the value "sequence-K": of each step what was answered and, of a read, the word,
 * "0=2a"; and then the KiB of page tables that are left of process 0, or "-" if it has died.
 * Checkpoints: "K.0" at the start of sequence K, "K.N" after its step N. The first sequence is number 0.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/tracking.h"

#ifndef VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY
#define VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY 3
#define VFIO_DEVICE_FEATURE_LOW_POWER_EXIT 5
#endif

#define ARENA ((char *)(1ul << 44))
#define ARENA_BYTES GIB(4)
#define PROCESSES 4
#define SAID 96
#define ANSWERS_MAX 4 /* that differ, of one operation in a race */
#define FOR_EVER 1000 /* faults of one access */
#define IOVA GIB(8)
#define UNMAP_ALL (-1) /* an order that is not a step */
#define NEXT ","

struct operation {
	int process;
	char verb[16];
	uint64_t at, size, to;
	char memory[8];
	char how[24];
};

struct answer {
	char said[SAID];
	uint64_t word;
	bool has_word;
};

/* What all processes share: who lives, and the answers to the last order: three of a race, otherwise one. */
struct board {
	struct answer answer[3];
	int pid[PROCESSES];
};

static struct board *board;
static _Thread_local struct answer *answer; /* of what this thread does */
static struct hp_bar bar;
static int order[PROCESSES][2], reply[2];
static _Thread_local int pipes[2]; /* made when they are needed, since two threads must not share them */
static int me;
static struct operation *steps; /* of the sequence that runs */
static int step_count;
static int sequence, steps_before;

/* The other thread of a process, on the second vCPU if there is one. It is made when it is needed first. */
static struct {
	sem_t go, done;
	void (*job)(void *);
	void *argument;
	bool lives;
} other;

static struct operation parse(const char *word)
{
	struct operation op = { 0 };

	if (sscanf(word, "%d:%15[a-z_]:%lx:%lx:%lx:%7[a-z]:%23[a-z_0-9]", &op.process, op.verb, &op.at, &op.size, &op.to,
		   op.memory, op.how) < 6 ||
	    op.process < 0 || op.process >= PROCESSES || op.at + op.size > ARENA_BYTES) {
		errno = EINVAL;
		hp_die("operation %s: expected PROCESS:VERB:AT:SIZE:TO:MEMORY:HOW", word);
	}
	return op;
}

static int rights(const char *how)
{
	return (strchr(how, 'r') ? PROT_READ : 0) | (strchr(how, 'w') ? PROT_WRITE : 0);
}

static void say_errno(long result)
{
	snprintf(answer->said, SAID, "%s", result == -1 ? hp_errno_name(errno) : "0");
}

/* --- accesses: one may be refused, and one may fault for ever ------------------------------------- */

static _Thread_local sigjmp_buf away;
static _Thread_local volatile sig_atomic_t trying;
static _Thread_local long faults_before;

static long faults(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_THREAD, &usage))
		hp_die("getrusage");
	return usage.ru_minflt + usage.ru_majflt;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (!trying) {
		if (number != SIGPROF)
			signal(number, SIG_DFL); /* the access is repeated, and kills the program */
		return;
	}
	if (number == SIGPROF && faults() - faults_before <= FOR_EVER)
		return;
	if (number == SIGPROF)
		strcpy(answer->said, "forever");
	else
		snprintf(answer->said, SAID, "%s.%d", hp_signal_name(number), info->si_code);
	siglongjmp(away, 1);
}

static void catch_signals(void)
{
	struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };

	if (sigaction(SIGSEGV, &act, NULL) || sigaction(SIGBUS, &act, NULL) || sigaction(SIGPROF, &act, NULL))
		hp_die("sigaction");
}

static void touch(char *addr, bool store, uint64_t value)
{
	const struct itimerval tick = { { 0, 20000 }, { 0, 20000 } }, none = { { 0, 0 }, { 0, 0 } };

	if (setitimer(ITIMER_PROF, &tick, NULL))
		hp_die("setitimer");
	faults_before = faults();
	strcpy(answer->said, "0");
	if (!sigsetjmp(away, 1)) {
		trying = 1;
		if (store)
			hp_write(addr, value);
		else
			answer->word = hp_read(addr);
		answer->has_word = !store;
	}
	trying = 0;
	if (setitimer(ITIMER_PROF, &none, NULL))
		hp_die("setitimer");
}

/* --- operations ----------------------------------------------------------------------------------- */

static void map(const struct operation *op)
{
	bool ours = !strcmp(op->memory, "bar"), shared = strcmp(op->memory, "anon") != 0;
	int flags = MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE) | (ours ? 0 : MAP_ANONYMOUS | MAP_NORESERVE);
	void *got = mmap(ARENA + op->at, op->size, rights(op->how), flags, ours ? bar.device_fd : -1,
			 ours ? (off_t)(bar.offset + op->to) : 0);

	say_errno(got == MAP_FAILED ? -1 : 0);
}

static void shrink(const struct operation *op)
{
	say_errno(mremap(ARENA + op->at, op->size, op->to, 0) == MAP_FAILED ? -1 : 0);
}

/* How many of the first pages at an address are present, and not soft-dirty. A BAR has no pages. */
static uint64_t clean_pages(const char *at, uint64_t size)
{
	uint64_t words[1024], found = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	ssize_t n = size / 4096 < 1024 ? (ssize_t)(size / 4096 * 8) : (ssize_t)sizeof(words);

	if (fd < 0 || pread(fd, words, (size_t)n, (off_t)((uintptr_t)at / 4096 * 8)) != n)
		hp_die("/proc/self/pagemap");
	close(fd);
	for (ssize_t i = 0; i < n / 8; i++)
		found += words[i] >> 63 && !(words[i] >> 55 & 1);
	return found;
}

static void move(const struct operation *op)
{
	void *got = mremap(ARENA + op->at, op->size, op->size, MREMAP_MAYMOVE | MREMAP_FIXED, ARENA + op->to);

	say_errno(got == MAP_FAILED ? -1 : 0);
	answer->has_word = got != MAP_FAILED;
	if (answer->has_word)
		answer->word = clean_pages(got, op->size);
}

static const struct {
	const char *name;
	int value;
} advices[] = {
	{ "normal", MADV_NORMAL },	   { "random", MADV_RANDOM },	{ "sequential", MADV_SEQUENTIAL },
	{ "dontfork", MADV_DONTFORK },	   { "dofork", MADV_DOFORK },	{ "dontdump", MADV_DONTDUMP },
	{ "dodump", MADV_DODUMP },	   { "hugepage", MADV_HUGEPAGE }, { "nohugepage", MADV_NOHUGEPAGE },
	{ "dontneed", MADV_DONTNEED },	   { "cold", MADV_COLD },	{ "pageout", MADV_PAGEOUT },
	{ "free", MADV_FREE },		   { "wipeonfork", MADV_WIPEONFORK },
	{ "collapse", 25 },		   { "guard", 102 }, /* MADV_COLLAPSE, MADV_GUARD_INSTALL */
};

/* Reads a file of /proc/self: all of it, but of pagemap the arena alone. */
static void look(const char *name)
{
	static char text[1 << 16];
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		say_errno(-1);
		return;
	}
	if (!strcmp(name, "pagemap"))
		n = pread(fd, text, sizeof(text), (off_t)((uintptr_t)ARENA / 4096 * 8));
	else
		while ((n = read(fd, text, sizeof(text))) > 0)
			;
	say_errno(n < 0 ? -1 : 0);
	close(fd);
}

/* Every step has a range of its own, so that two can race, and none finds what another has left. */
static void map_dma(const struct operation *op, int number)
{
	uint64_t iova = IOVA + (uint64_t)(steps_before + number) * GIB(1);
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map),
						.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
						.vaddr = (uint64_t)(ARENA + op->at),
						.iova = iova,
						.size = op->size };
	struct vfio_iommu_type1_dma_unmap undo = { .argsz = sizeof(undo), .iova = iova, .size = op->size };

	if (ioctl(bar.container_fd, VFIO_IOMMU_MAP_DMA, &map)) {
		say_errno(-1);
		return;
	}
	say_errno(ioctl(bar.container_fd, VFIO_IOMMU_UNMAP_DMA, &undo));
	if (undo.size != op->size)
		strcpy(answer->said, "short");
}

/* The kernel stores a word, from a pipe, or takes one, into it. */
static void through_a_pipe(char *at, bool fill, uint64_t value)
{
	ssize_t done;

	if (!pipes[1] && pipe(pipes))
		hp_die("pipe");
	if (fill && write(pipes[1], &value, sizeof(value)) != sizeof(value))
		hp_die("write to the pipe");
	done = fill ? read(pipes[0], at, sizeof(value)) : write(pipes[1], at, sizeof(value));
	say_errno(done == sizeof(value) ? 0 : -1);
	if (done == sizeof(value) ? !fill : fill) { /* it is still in the pipe */
		if (read(pipes[0], &answer->word, sizeof(value)) != sizeof(value))
			hp_die("read of the pipe");
		answer->has_word = !fill;
	}
}

/* The word by way of its page, if it has one. */
static void peek_by(const char *how, char *at)
{
	struct iovec theirs = { at, sizeof(answer->word) }, ours = { &answer->word, sizeof(answer->word) };
	bool whole;

	if (!pipes[1] && pipe(pipes))
		hp_die("pipe");
	if (!strcmp(how, "vm_readv"))
		whole = process_vm_readv(getpid(), &ours, 1, &theirs, 1, 0) == sizeof(answer->word);
	else
		whole = vmsplice(pipes[1], &theirs, 1, 0) == sizeof(answer->word);
	say_errno(whole ? 0 : -1);
	answer->has_word = whole;
	if (whole && strcmp(how, "vm_readv") && read(pipes[0], ours.iov_base, ours.iov_len) != sizeof(answer->word))
		hp_die("read of the pipe");
}

static void peek(const char *at)
{
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		hp_die("/proc/self/mem");
	got = pread(fd, &answer->word, sizeof(answer->word), (off_t)(uintptr_t)at);
	say_errno(got == sizeof(answer->word) ? 0 : -1);
	answer->has_word = got == sizeof(answer->word);
	close(fd);
}

/* The host shall walk all of the arena, whatever is in it. */
static void name_arena(void)
{
	hp_map(&(struct hp_mapping){ .name = "arena",
				     .addr = ARENA,
				     .length = ARENA_BYTES,
				     .prot = PROT_READ | PROT_WRITE,
				     .backing = HP_RAM });
}

static void obey(int process);

/* The child is the coordinator's, too. Returns in the parent, once the child is registered. */
static void make_process(int number)
{
	struct hp_gate registered;
	pid_t pid;
	char name[8];

	hp_gate_init(&registered);
	pid = (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	if (pid < 0) {
		say_errno(-1);
		return;
	}
	if (!pid) {
		other.lives = false;
		snprintf(name, sizeof(name), "p%d", number);
		hp_register(name);
		name_arena();
		hp_gate_open(&registered);
		obey(number);
	}
	board->pid[number] = pid;
	hp_gate_wait(&registered);
	close(registered.fd[0]);
	close(registered.fd[1]);
	say_errno(0);
}

/* How many pages of the range are present. */
static void scan(const struct operation *op)
{
	struct hp_scan_range ranges[16];
	long count = hp_scan(ARENA + op->at, op->size, 0, HP_PAGE_PRESENT, ranges, 16);

	errno = count < 0 ? (int)-count : 0;
	say_errno(count < 0 ? -1 : 0);
	answer->has_word = count >= 0;
	answer->word = 0;
	for (long i = 0; i < count; i++)
		answer->word += (ranges[i].end - ranges[i].start) / 4096;
}

static void ask_mincore(const struct operation *op)
{
	static unsigned char in_core[1 << 14];
	uint64_t most = sizeof(in_core) * 4096, length;

	say_errno(0);
	for (uint64_t at = op->at; at < op->at + op->size; at += length) {
		length = op->at + op->size - at < most ? op->at + op->size - at : most;
		if (mincore(ARENA + at, length, in_core)) {
			say_errno(-1);
			return;
		}
	}
}

/* Closing it takes back what it watches. */
static void watch(const struct operation *op)
{
	bool missing = !strcmp(op->how, "missing"), async = !strcmp(op->how, "async");
	int fd = hp_uffd_open(async ? HP_UFFD_FEATURE_WP_ASYNC : 0), error = -fd;

	if (fd >= 0) {
		error = hp_uffd_register(fd, ARENA + op->at, op->size,
					 missing ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP);
		close(fd);
	}
	errno = error;
	say_errno(error ? -1 : 0);
}

static void set_power(uint32_t feature)
{
	struct vfio_device_feature arg = { .argsz = sizeof(arg), .flags = VFIO_DEVICE_FEATURE_SET | feature };

	say_errno(ioctl(bar.device_fd, VFIO_DEVICE_FEATURE, &arg));
}

static void set_device(const char *how)
{
	if (!strcmp(how, "sleep"))
		set_power(VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY);
	else if (!strcmp(how, "wake"))
		set_power(VFIO_DEVICE_FEATURE_LOW_POWER_EXIT);
	else if (!strcmp(how, "reset"))
		say_errno(ioctl(bar.device_fd, VFIO_DEVICE_RESET));
	else {
		hp_bar_memory(&bar, !strcmp(how, "on"));
		say_errno(0);
	}
}

/* The child has this process's memory, and this process waits for its end. */
static void touch_by_vfork(char *at, bool store, uint64_t value)
{
	int status;
	pid_t child = vfork();

	if (!child) {
		touch(at, store, value);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		hp_die("vfork");
	if (status)
		strcpy(answer->said, "died");
}

static void clear_refs(const char *how)
{
	int error = hp_write_file("/proc/self/clear_refs", how);

	errno = error;
	say_errno(error ? -1 : 0);
}

static void do_step(int number)
{
	const struct operation *op = &steps[number - 1];
	char *at = ARENA + op->at;

	if (!strcmp(op->verb, "map"))
		map(op);
	else if (!strcmp(op->how, "vfork"))
		touch_by_vfork(at, op->verb[0] == 'w', (uint64_t)number);
	else if (!strcmp(op->verb, "read") || !strcmp(op->verb, "write"))
		touch(at, op->verb[0] == 'w', (uint64_t)number);
	else if (!strcmp(op->verb, "fill") || !strcmp(op->verb, "send"))
		through_a_pipe(at, op->verb[0] == 'f', (uint64_t)number);
	else if (!strcmp(op->verb, "peek") && op->how[0])
		peek_by(op->how, at);
	else if (!strcmp(op->verb, "peek"))
		peek(at);
	else if (!strcmp(op->verb, "scan"))
		scan(op);
	else if (!strcmp(op->verb, "mincore"))
		ask_mincore(op);
	else if (!strcmp(op->verb, "uffd"))
		watch(op);
	else if (!strcmp(op->verb, "mlock"))
		say_errno(!strcmp(op->how, "on") ? mlock(at, op->size) : munlock(at, op->size));
	else if (!strcmp(op->verb, "grow"))
		say_errno(mremap(at, op->size, op->to, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
	else if (!strcmp(op->verb, "fork"))
		make_process((int)op->to);
	else if (!strcmp(op->verb, "mprotect"))
		say_errno(mprotect(at, op->size, rights(op->how)));
	else if (!strcmp(op->verb, "munmap"))
		say_errno(munmap(at, op->size));
	else if (!strcmp(op->verb, "mremap"))
		move(op);
	else if (!strcmp(op->verb, "shrink"))
		shrink(op);
	else if (!strcmp(op->verb, "madvise"))
		say_errno(madvise(at, op->size, hp_pick("madvise ", op->how, advices)->value));
	else if (!strcmp(op->verb, "clear_refs"))
		clear_refs(op->how);
	else if (!strcmp(op->verb, "look"))
		look(op->how);
	else if (!strcmp(op->verb, "dma"))
		map_dma(op, number);
	else if (!strcmp(op->verb, "memory"))
		set_device(op->how);
	else {
		errno = EINVAL;
		hp_die("no operation is called %s", op->verb);
	}
}

/* --- the other thread ----------------------------------------------------------------------------- */

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sysconf(_SC_NPROCESSORS_ONLN) > 1 && sched_setaffinity(0, sizeof(set), &set))
		hp_die("sched_setaffinity");
}

/* Page tables are compared, so what a stack needs is there before they are counted first. */
static void use_stack(void)
{
	volatile char deep[KIB(64)];

	for (size_t at = 0; at < sizeof(deep); at += 4096)
		deep[at] = 0;
}

static void wait_for(sem_t *event)
{
	while (sem_wait(event))
		if (errno != EINTR)
			hp_die("sem_wait");
}

static void *serve(void *unused)
{
	(void)unused;
	stay_on(1);
	use_stack();
	for (;;) {
		wait_for(&other.go);
		other.job(other.argument);
		sem_post(&other.done);
	}
	return NULL;
}

static void start_on_other(void (*job)(void *), void *argument)
{
	pthread_t thread;

	if (!other.lives) {
		stay_on(0);
		if (sem_init(&other.go, 0, 0) || sem_init(&other.done, 0, 0) ||
		    pthread_create(&thread, NULL, serve, NULL))
			hp_die("the other thread");
		other.lives = true;
	}
	other.job = job;
	other.argument = argument;
	sem_post(&other.go);
}

/* SIGPROF is for the thread that faults, see touch(). */
static void wait_for_other(void)
{
	sigset_t prof;

	sigemptyset(&prof);
	sigaddset(&prof, SIGPROF);
	pthread_sigmask(SIG_BLOCK, &prof, NULL);
	wait_for(&other.done);
	pthread_sigmask(SIG_UNBLOCK, &prof, NULL);
}

static void do_step_there(void *number)
{
	answer = board->answer;
	do_step(*(int *)number);
}

/* --- two operations against each other ------------------------------------------------------------ */

struct racer {
	int number;
	uint64_t rounds;
	struct answer *answer;
	pthread_barrier_t *start;
};

/* Adds an answer to those that there were, unless it is one of them. */
static void note_answer(char heard[ANSWERS_MAX][SAID / ANSWERS_MAX], const char *said)
{
	for (int i = 0; i < ANSWERS_MAX; i++) {
		if (!strcmp(heard[i], said))
			return;
		if (!heard[i][0]) {
			snprintf(heard[i], SAID / ANSWERS_MAX, "%.20s", said);
			return;
		}
	}
}

/* Does one operation again and again. Its answer is all answers that differ: "0|SEGV.1". */
static void race(void *argument)
{
	char heard[ANSWERS_MAX][SAID / ANSWERS_MAX] = { 0 };
	const struct racer *racer = argument;
	size_t length = 0;

	answer = racer->answer;
	pthread_barrier_wait(racer->start);
	for (uint64_t round = 0; round < racer->rounds; round++) {
		do_step(racer->number);
		note_answer(heard, answer->said);
		if (!strcmp(answer->said, "forever"))
			break;
	}
	for (int i = 0; i < ANSWERS_MAX && heard[i][0]; i++)
		length += (size_t)snprintf(answer->said + length, SAID - length, "%s%s", i ? "|" : "", heard[i]);
}

static void run_race(int number)
{
	pthread_barrier_t start;
	struct racer there = { number + 1, steps[number - 1].size, &board->answer[1], &start }, here = there;

	here.number = number + 2;
	here.answer = &board->answer[2];
	if (pthread_barrier_init(&start, NULL, 2))
		hp_die("start of a race");
	start_on_other(race, &there);
	race(&here);
	wait_for_other();
	pthread_barrier_destroy(&start);
	strcpy(board->answer[0].said, "0");
}

static bool is_for_other(const struct operation *op)
{
	return !strcmp(op->how, "other");
}

static void do_nothing(void *unused)
{
	(void)unused;
}

/* The other thread has a stack, and so page tables: if there will be one, it is there from the start. */
static void unmap_all(void)
{
	use_stack();
	for (int i = 0; i < step_count; i++)
		if (!other.lives && (is_for_other(&steps[i]) || !strcmp(steps[i].verb, "race"))) {
			start_on_other(do_nothing, NULL);
			wait_for_other();
		}
	say_errno(munmap(ARENA, ARENA_BYTES));
}

/* A process of the arena does what it is told until it has to exit. */
static void obey(int process)
{
	int number;

	me = process;
	for (;;) {
		answer = board->answer;
		if (read(order[me][0], &number, sizeof(number)) != sizeof(number))
			hp_die("read of an order");
		if (number == UNMAP_ALL)
			unmap_all();
		else if (!strcmp(steps[number - 1].verb, "exit"))
			_exit(0);
		else if (!strcmp(steps[number - 1].verb, "race"))
			run_race(number);
		else if (is_for_other(&steps[number - 1])) {
			start_on_other(do_step_there, &number);
			wait_for_other();
		} else
			do_step(number);
		if (write(reply[1], "", 1) != 1)
			hp_die("reply");
	}
}

/* --- the coordinator ------------------------------------------------------------------------------ */

static void bury(int process)
{
	hp_reap(board->pid[process]);
	board->pid[process] = 0;
}

/* Gives an order, and waits until it is done or the process has died. */
static void give(int process, int number)
{
	int pidfd = (int)syscall(SYS_pidfd_open, board->pid[process], 0);
	struct pollfd fds[] = { { .fd = reply[0], .events = POLLIN }, { .fd = pidfd, .events = POLLIN } };
	char byte;

	if (pidfd < 0)
		hp_die("pidfd_open of process %d", process);
	for (int i = 0; i < 3; i++) {
		board->answer[i].has_word = false;
		strcpy(board->answer[i].said, "died");
	}
	if (write(order[process][1], &number, sizeof(number)) != sizeof(number))
		hp_die("give an order");
	while (poll(fds, 2, -1) < 0)
		if (errno != EINTR)
			hp_die("poll");
	if (fds[0].revents) {
		if (read(reply[0], &byte, 1) != 1)
			hp_die("read of a reply");
	} else {
		bury(process);
	}
	close(pidfd);
}

static bool takes_part(const struct operation *op)
{
	bool fork = !strcmp(op->verb, "fork");

	return board->pid[op->process] && !(fork && (op->to >= PROCESSES || board->pid[op->to]));
}

static void pass(int step)
{
	char name[24];

	snprintf(name, sizeof(name), "%d.%d", sequence, step);
	checkpoint(name);
}

/* Keeps an answer until the end of the sequence: to report it at once would wake PID 1 at each step. */
static void note_step(int number, const struct answer *what, FILE *answers)
{
	fprintf(answers, "%s", what->said);
	if (what->has_word)
		fprintf(answers, "=%lx", what->word);
	fputc(' ', answers);
	pass(number);
}

/* Returns how many steps were done: three if it was a race. */
static int run_step(int number, FILE *answers)
{
	const struct operation *op = &steps[number - 1];
	int together = !strcmp(op->verb, "race") && number + 2 <= step_count ? 3 : 1;

	if (takes_part(op)) {
		give(op->process, number);
		if (!strcmp(op->verb, "exit"))
			strcpy(board->answer[0].said, "0");
	} else {
		for (int i = 0; i < together; i++) {
			board->answer[i].has_word = false;
			strcpy(board->answer[i].said, "absent");
		}
	}
	for (int i = 0; i < together; i++)
		note_step(number + i, &board->answer[i], answers);
	return together;
}

/* With nothing mapped, notes how many KiB of page tables are left of process 0. */
static void end_processes(long before, FILE *answers)
{
	for (int i = PROCESSES; i-- > 0;) {
		if (board->pid[i])
			give(i, UNMAP_ALL);
		if (!i && board->pid[0])
			fprintf(answers, "%ld", hp_page_table_kib(board->pid[0]) - before);
		else if (!i)
			fputc('-', answers);
		if (board->pid[i]) {
			kill(board->pid[i], SIGKILL);
			bury(i);
		}
	}
}

/* Each sequence has its own, so that an order to a process that died reaches nobody later. */
static void make_pipes(void)
{
	static int *const all[] = { order[0], order[1], order[2], order[3], reply };

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (sequence && (close(all[i][0]) || close(all[i][1])))
			hp_die("close of a pipe");
		if (pipe(all[i]))
			hp_die("pipe");
	}
}

static void run_sequence(void)
{
	char *text, name[24];
	size_t length;
	FILE *answers = open_memstream(&text, &length);
	pid_t first;
	long before;

	make_pipes();
	first = hp_fork("p0");
	if (!first) {
		name_arena();
		obey(0);
	}
	board->pid[0] = first;
	give(0, UNMAP_ALL); /* it has run once, so that its own tables are there */
	before = hp_page_table_kib(board->pid[0]);
	pass(0);
	for (int number = 1; number <= step_count;)
		number += run_step(number, answers);
	end_processes(before, answers);
	if (fclose(answers))
		hp_die("the answers");
	snprintf(name, sizeof(name), "sequence-%d", sequence);
	ktap_value(name, "%s", text);
	free(text);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);

	ktap_plan(1);
	bar = hp_bar_open((unsigned int)strtoul(hp_option(&options, "bar", "2"), NULL, 10));
	board = mmap(NULL, KIB(4), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	steps = calloc((size_t)options.argc, sizeof(*steps));
	if (board == MAP_FAILED || !steps)
		hp_die("start");
	catch_signals();
	for (int i = 1; i <= options.argc; i++) {
		if (i == options.argc || !strcmp(options.argv[i], NEXT)) {
			run_sequence();
			sequence++;
			steps_before += step_count;
			step_count = 0;
		} else if (strncmp(options.argv[i], "--", 2)) {
			steps[step_count++] = parse(options.argv[i]);
		}
	}
	ktap_ok(true, "%d sequences", sequence);
	return ktap_finish();
}
