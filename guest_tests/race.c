// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: two threads of one process, on two CPUs, that fault on, unmap, protect, fork and revoke one mapping at once
 * leave it in a state that one of the possible orders leaves: one leaf per place, of the right page, with the rights of
 * the VMA, and no page table more than before.
 *
 * One case per run, --case=NAME: main() and one more thread run for --rounds rounds, then the thread is joined, and
 * "raced" shows what they left; further checkpoints are listed with each case.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define RW (PROT_READ | PROT_WRITE)

static struct hp_bar bar;
static char *mapped;
static size_t length;
static atomic_int arrived;
static atomic_bool stop;
static atomic_long values, refusals, others; /* how the thread's accesses ended */

static void map_again(void)
{
	if (mmap(mapped, length, RW, MAP_SHARED | MAP_FIXED, bar.device_fd, (off_t)bar.offset) != mapped)
		hp_die("mmap");
}

/* Both threads return at almost the same time: the closer, the better the race. */
static void meet(int *turn)
{
	*turn += 2;
	atomic_fetch_add(&arrived, 1);
	for (long spins = 0; atomic_load(&arrived) < *turn; spins++)
		if (spins % 4096 == 4095)
			sched_yield(); /* the other thread is not on a CPU */
		else
			__builtin_ia32_pause();
}

static pthread_t start(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, run, argument);
	if (errno)
		hp_die("pthread_create");
	return thread;
}

static void join(pthread_t thread)
{
	errno = pthread_join(thread, NULL);
	if (errno)
		hp_die("pthread_join");
}

static void note(struct hp_caught caught, int expected)
{
	if (!caught.signal)
		values++;
	else if (caught.signal == expected)
		refusals++;
	else
		others++;
}

/* Reads and writes all over the mapping until told to stop; EXPECTED is the signal that may end an access. */
static void *accesses(void *expected)
{
	size_t step = length / 4;

	for (size_t at = 0; !stop; at = (at + step) % length) {
		note(hp_try_write(mapped + at, at), *(int *)expected);
		note(hp_try_read(mapped + at, NULL), *(int *)expected);
	}
	return NULL;
}

static void say_accesses(void)
{
	ktap_value("values", "%ld", values);
	ktap_value("refusals", "%ld", refusals);
	ktap_value("others", "%ld", others);
}

/* Waits for an access that begins after this call: the second that is counted, since one may be under way. */
static void one_more(atomic_long *count)
{
	long enough = *count + 2;

	while (*count < enough)
		sched_yield();
}

/* --- fault: both touch a fresh mapping at once, one reads and one writes, at different places of the leaf -------- */

static void *fault_thread(void *rounds)
{
	int turn = 0;

	for (long i = 0; i < *(long *)rounds; i++) {
		meet(&turn);
		hp_write(mapped + (i % 2 ? length / 2 : 0), 1);
		meet(&turn);
	}
	return NULL;
}

static void race_fault(long rounds)
{
	pthread_t thread = start(fault_thread, &rounds);
	long tables, most = 0, first = 0;
	int turn = 0;

	for (long i = 0; i < rounds; i++) {
		map_again();
		meet(&turn);
		hp_read(mapped);
		meet(&turn);
		if (i % 32 && i != rounds - 1)
			continue;
		tables = hp_page_table_kib(0);
		first = first ? first : tables;
		most = tables > most ? tables : most;
	}
	join(thread);
	ktap_value("tables-first", "%ld", first);
	ktap_value("tables-most", "%ld", most);
	checkpoint("raced");
}

/* --- fork: the other thread maps again and touches; in the child, checkpoint "forked" ------------------------------ */

static void *remaps(void *unused)
{
	(void)unused;
	while (!stop) {
		map_again();
		hp_write(mapped, 1);
		hp_read(mapped + length / 2);
		values++;
	}
	return NULL;
}

static void race_fork(long rounds)
{
	pthread_t thread = start(remaps, NULL);
	pid_t child;
	long failed = 0;
	int status;

	for (long i = 0; i < rounds; i++) {
		child = fork();
		if (child < 0)
			hp_die("fork");
		if (!child) {
			hp_write(mapped, 2);
			hp_read(mapped + length / 2);
			_exit(0);
		}
		if (waitpid(child, &status, 0) != child)
			hp_die("waitpid");
		failed += status != 0;
	}
	ktap_value("failed", "%ld", failed);
	child = hp_fork("child");
	if (!child) {
		checkpoint("forked");
		hp_write(mapped, 2);
		checkpoint("child-written");
		_exit(0);
	}
	ktap_value("last", "%d", hp_reap(child));
	stop = true;
	join(thread);
	checkpoint("raced");
}

/* --- munmap: the other thread accesses; unmapped at "raced", mapped and touched again at "again" ---------------- */

static void race_munmap(long rounds)
{
	int expected = SIGSEGV;
	pthread_t thread = start(accesses, &expected);

	for (long i = 0; i < rounds; i++) {
		if (i % 16 == 0)
			one_more(&values);
		if (munmap(mapped, length))
			hp_die("munmap");
		if (i % 16 == 0)
			one_more(&refusals);
		map_again();
	}
	one_more(&values);
	if (munmap(mapped, length))
		hp_die("munmap");
	one_more(&refusals);
	stop = true;
	join(thread);
	checkpoint("raced"); /* still named, so that the host looks */
	map_again();
	hp_read(mapped);
	checkpoint("again");
	say_accesses();
}

/* --- memory: the device goes off and on during the accesses; off at "raced", on at "again" ------------------- */

static void race_memory(long rounds)
{
	int expected = SIGBUS;
	pthread_t thread = start(accesses, &expected);

	for (long i = 0; i < rounds; i++) {
		if (i % 16 == 0)
			one_more(&values);
		hp_bar_memory(&bar, false);
		if (i % 16 == 0)
			one_more(&refusals);
		hp_bar_memory(&bar, true);
	}
	one_more(&values);
	hp_bar_memory(&bar, false);
	one_more(&refusals);
	stop = true;
	join(thread);
	checkpoint("raced");
	hp_bar_memory(&bar, true);
	hp_read(mapped);
	checkpoint("again");
	say_accesses();
}

/* --- mprotect: rights change during the other thread's writes; read-only at "raced", writable at "again" ----- */

static void protect(int prot)
{
	if (mprotect(mapped, length, prot))
		hp_die("mprotect");
}

static void *writes(void *expected)
{
	while (!stop)
		note(hp_try_write(mapped, 1), *(int *)expected);
	return NULL;
}

static void race_mprotect(long rounds)
{
	int expected = SIGSEGV;
	pthread_t thread = start(writes, &expected);

	for (long i = 0; i < rounds; i++) {
		if (i % 16 == 0)
			one_more(&values);
		protect(PROT_READ);
		if (i % 16 == 0)
			one_more(&refusals);
		protect(RW);
	}
	map_again(); /* a clean leaf: the dirty bit at the end comes from the writes before the last mprotect */
	one_more(&values);
	protect(PROT_READ);
	one_more(&refusals);
	stop = true;
	join(thread);
	hp_bar_name("bar", mapped, length, PROT_READ, 0);
	checkpoint("raced");
	protect(RW);
	hp_bar_name("bar", mapped, length, RW, 0);
	checkpoint("again");
	say_accesses();
}

static const struct race {
	const char *name;
	void (*run)(long rounds);
} races[] = {
	{ "fault", race_fault },
	{ "fork", race_fork },
	{ "munmap", race_munmap },
	{ "memory", race_memory },
	{ "mprotect", race_mprotect },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct race *chosen = hp_choose(&options, "case", "", races);
	long rounds = strtol(hp_option(&options, "rounds", "200"), NULL, 10);

	bar = hp_bar_open(2);
	mapped = hp_bar_map(&bar, options.level, RW);
	length = options.level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(options.level);
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		ktap_skip_all("only one CPU: no race is possible");
	ktap_plan(1);
	hp_write(mapped, 1);
	chosen->run(rounds);
	ktap_ok(true, "the threads met");
	return ktap_finish();
}
