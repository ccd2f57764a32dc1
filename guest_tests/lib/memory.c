// SPDX-License-Identifier: GPL-2.0-only
/* Memory: reserve it, touch it, count faults, and catch an access that the kernel refuses. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include "hugepfn.h"

/* A refused access is answered in the thread that made it. */
static _Thread_local sigjmp_buf refused;
static _Thread_local volatile sig_atomic_t trying;
static _Thread_local struct hp_caught caught;
static _Thread_local long faults_before;

/* An access that took so many faults will never complete. */
#define FOR_EVER 10000

void *hp_reserve(size_t length, size_t align)
{
	char *base = mmap(NULL, length + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *aligned;

	if (base == MAP_FAILED)
		hp_die("reserve %zu bytes", length + align);
	aligned = (char *)(((uintptr_t)base + align - 1) & ~(uintptr_t)(align - 1));
	if (munmap(base, length + align))
		hp_die("munmap of the reservation");
	return aligned;
}

uint64_t hp_read(const void *addr)
{
	return *(const volatile uint64_t *)addr;
}

void hp_write(void *addr, uint64_t value)
{
	*(volatile uint64_t *)addr = value;
}

static long faults(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_SELF, &usage))
		hp_die("getrusage");
	return usage.ru_minflt + usage.ru_majflt;
}

static void on_tick(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	(void)context;
	if (trying && faults() - faults_before > FOR_EVER)
		siglongjmp(refused, 1);
}

/* A timer on the process's CPU time runs during the access, so that an access that faults forever is given up. */
static long count_faults(void *addr, bool store, uint64_t value)
{
	struct sigaction act = { .sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART }, old;
	const struct itimerval tick = { { 0, 20000 }, { 0, 20000 } }, none = { { 0, 0 }, { 0, 0 } };
	volatile bool done = false;
	long took;

	if (sigaction(SIGPROF, &act, &old) || setitimer(ITIMER_PROF, &tick, NULL))
		hp_die("setitimer");
	faults(); /* faults in what faults() itself uses */
	if (!sigsetjmp(refused, 1)) {
		trying = 1;
		faults_before = faults();
		if (store)
			hp_write(addr, value);
		else
			hp_read(addr);
		done = true;
	}
	took = faults() - faults_before;
	trying = 0;
	if (setitimer(ITIMER_PROF, &none, NULL) || sigaction(SIGPROF, &old, NULL))
		hp_die("setitimer");
	return done ? took : -1;
}

long hp_write_faults(void *addr, uint64_t value)
{
	return count_faults(addr, true, value);
}

long hp_read_faults(const void *addr)
{
	return count_faults((void *)addr, false, 0);
}

size_t hp_leaf_size(enum hp_level level)
{
	return (size_t)4096 << (9 * level);
}

static const char *const level_names[] = { [HP_PTE] = "pte", [HP_PMD] = "pmd", [HP_PUD] = "pud" };

const char *hp_level_name(enum hp_level level)
{
	return level_names[level];
}

enum hp_level hp_level_of(const char *what, const char *name)
{
	return (enum hp_level)hp_index(what, name, level_names, sizeof(*level_names), HP_PUD + 1);
}

/* SIGBUS and SIGSEGV end an access of hp_try_*(); from anywhere else they kill the program, as without a handler. */
static void on_refusal(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (!trying) {
		signal(number, SIG_DFL);
		return; /* the access is repeated, and kills the program */
	}
	caught = (struct hp_caught){ .signal = number, .code = info->si_code, .addr = info->si_addr };
	siglongjmp(refused, 1);
}

static struct hp_caught try_access(void *addr, bool store, uint64_t *value)
{
	struct sigaction act = { .sa_sigaction = on_refusal, .sa_flags = SA_SIGINFO };

	if (sigaction(SIGBUS, &act, NULL) || sigaction(SIGSEGV, &act, NULL))
		hp_die("sigaction");
	caught = (struct hp_caught){ .signal = 0 };
	if (!sigsetjmp(refused, 1)) {
		trying = 1;
		if (store)
			hp_write(addr, *value);
		else
			*value = hp_read(addr);
	}
	trying = 0;
	return caught;
}

struct hp_caught hp_try_read(const void *addr, uint64_t *value)
{
	uint64_t unused;

	return try_access((void *)addr, false, value ? value : &unused);
}

struct hp_caught hp_try_write(void *addr, uint64_t value)
{
	return try_access(addr, true, &value);
}

const char *hp_signal_name(int number)
{
	const char *name = number ? sigabbrev_np(number) : "0";

	return name ? name : "?";
}

const char *hp_errno_name(int error)
{
	const char *name = error ? strerrorname_np(error) : "0";

	return name ? name : "?";
}

int hp_write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;

	if (fd < 0)
		return errno;
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		error = errno;
	close(fd);
	return error;
}

uint64_t hp_pagemap_word(const void *addr)
{
	uint64_t word;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || pread(fd, &word, sizeof(word), (off_t)((uintptr_t)addr / 4096 * 8)) != sizeof(word))
		hp_die("/proc/self/pagemap");
	close(fd);
	return word;
}
