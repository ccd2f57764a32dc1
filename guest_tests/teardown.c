// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: the end of a process, however it comes, removes its leaves and its VMAs and no others: a survivor keeps
 * its entries, and when the device's memory is turned off, vfio finds every mapping that is left and none that is gone.
 *
 * One case per run, --case=NAME. Each ends with held, gone, off, on: before the other process's end, after it, and with
 * the device's memory off and on again.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define RW (PROT_READ | PROT_WRITE)
#define STORMS 20 /* rounds before the kill, which comes at any point of a later one */

static struct hp_options options;
static struct hp_bar bar;
static char *mapped;
static size_t length;
static struct hp_gate go, done;

/* The survivor's part: its leaf is zapped when the device's memory is off, and a new one comes when it is on again. */
static void off_and_on(void)
{
	struct hp_caught caught;

	hp_bar_memory(&bar, false);
	caught = hp_try_read(mapped, NULL);
	checkpoint("off");
	ktap_value("off-read", "%s", hp_signal_name(caught.signal));
	hp_bar_memory(&bar, true);
	hp_read(mapped);
	checkpoint("on");
}

static void survive(const char *whose, int status)
{
	ktap_value("status", "%d", status);
	ktap_value("tables-after", "%ld", hp_page_table_kib(0));
	checkpoint("gone");
	off_and_on();
	ktap_ok(true, "survived %s", whose);
}

/* The other one holds the leaf until it is killed. */
static void child_is_killed(void)
{
	pid_t child = hp_fork("child");

	if (!child) {
		hp_write(mapped, 2);
		checkpoint("held");
		hp_gate_open(&done);
		for (;;)
			pause();
	}
	hp_gate_wait(&done);
	kill(child, SIGKILL);
	survive("the child's death", hp_reap(child));
}

static void child_exits(void)
{
	pid_t child = hp_fork("child");

	if (!child) {
		hp_write(mapped, 2);
		checkpoint("held");
		_exit(0);
	}
	survive("the child's exit", hp_reap(child));
}

/* The second stage, another program in the child's process: it inherits only the open files of the first. */
static void execed(void)
{
	unsigned char present;
	void *old = (void *)strtoul(hp_option(&options, "old", "0"), NULL, 16);

	hp_map(&(struct hp_mapping){ .name = "old", .addr = old, .length = KIB(4), .prot = RW, .backing = HP_BAR });
	ktap_value("old-vma", "%s", hp_errno_name(mincore(old, KIB(4), &present) ? errno : 0));
	checkpoint("execed");
	exit(0);
}

static void child_execs(void)
{
	pid_t child = hp_fork("child");

	if (!child) {
		char old[64], level_option[32];

		snprintf(old, sizeof(old), "--old=%lx", (unsigned long)mapped);
		snprintf(level_option, sizeof(level_option), "--level=%s", hp_level_name(options.level));
		hp_write(mapped, 2);
		checkpoint("held");
		hp_exec("child", (char *[]){ options.argv[0], level_option, "--case=execed", old, NULL });
	}
	survive("the child's exec", hp_reap(child));
}

/* The survivor is the child, whose parent becomes another program and waits for it. */
static void parent_execs(void)
{
	char child_option[32], go_option[32];
	pid_t child = hp_fork("child");

	if (!child) {
		hp_gate_wait(&go);
		survive("the parent's exec", 0);
		_exit(0);
	}
	checkpoint("held");
	snprintf(child_option, sizeof(child_option), "--child=%d", child);
	snprintf(go_option, sizeof(go_option), "--go=%d", fcntl(go.fd[1], F_DUPFD, 10));
	hp_exec("parent", (char *[]){ options.argv[0], "--case=waits", child_option, go_option, NULL });
}

static void waits(void)
{
	struct hp_gate inherited = { .fd = { -1, atoi(hp_option(&options, "go", "")) } };

	hp_gate_open(&inherited);
	exit(hp_reap(atoi(hp_option(&options, "child", ""))) ? 1 : 0);
}

/* Faults and unmaps until it is killed. */
static _Noreturn void fault_loop(void)
{
	for (long round = 0;; round++) {
		if (mmap(mapped, length, RW, MAP_SHARED | MAP_FIXED, bar.device_fd, (off_t)bar.offset) != mapped)
			_exit(1);
		for (size_t at = 0; at < length; at += length / 4)
			hp_write(mapped + at, 1);
		if (round == STORMS)
			hp_gate_open(&done);
	}
}

/* Forks children that write and exit, until it is killed. */
static _Noreturn void fork_storm(void)
{
	for (long round = 0;; round++) {
		if (!fork()) {
			hp_write(mapped, 1);
			_exit(0);
		}
		if (round % 4 == 3)
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		if (round == STORMS)
			hp_gate_open(&done);
	}
}

static void killed_in(void (*busy)(void))
{
	int status;
	pid_t child;

	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		hp_die("PR_SET_CHILD_SUBREAPER");
	checkpoint("held");
	child = fork();
	if (child < 0)
		hp_die("fork");
	if (!child)
		busy();
	hp_gate_wait(&done);
	if (kill(child, SIGKILL) || waitpid(child, &status, 0) != child)
		hp_die("the kill of %d", child);
	while (wait(NULL) > 0) /* its own children, reparented */
		;
	survive("the kill", status);
}

static void killed_faulting(void)
{
	killed_in(fault_loop);
}

static void killed_forking(void)
{
	killed_in(fork_storm);
}

static const struct teardown {
	const char *name;
	void (*run)(void);
	bool is_second_stage; /* of an exec; does not return */
} cases[] = {
	{ "exit", child_exits, false },
	{ "kill", child_is_killed, false },
	{ "exec_child", child_execs, false },
	{ "execed", execed, true },
	{ "exec_parent", parent_execs, false },
	{ "waits", waits, true },
	{ "kill_faulting", killed_faulting, false },
	{ "kill_forking", killed_forking, false },
};

int main(int argc, char **argv)
{
	const struct teardown *chosen;

	options = hp_start(argc, argv);
	chosen = hp_choose(&options, "case", "", cases);
	if (chosen->is_second_stage)
		chosen->run();
	bar = hp_bar_open(2);
	mapped = hp_bar_map(&bar, options.level, RW);
	length = options.level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(options.level);
	hp_gate_init(&go);
	hp_gate_init(&done);
	ktap_plan(1);
	hp_write(mapped, 1);
	ktap_value("tables-before", "%ld", hp_page_table_kib(0));
	chosen->run();
	return ktap_finish();
}
