// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a process that is killed while its vCPU runs leaves nothing behind: no virtual machine, and a device that the
 * next process can map for a virtual machine of its own.
 *
 * The child's vCPU reads and writes the BAR over and over, and never leaves KVM_RUN. The parent kills the child, and
 * then does with the device what the child did.
 *
 * Mappings: "bar". The VM of the child is "vm", that of the parent "next", each with the slots "code" and "bar".
 * Checkpoints: running (the child's), dead, again.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/kvm.h"
#include "lib/kvm_loop.h"

#define GPA GIB(1)
#define DEBUGFS "/sys/kernel/debug/kvm" /* has a folder PID-FD for each virtual machine */

static struct hp_vm *over_bar(const char *name, enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	void *mapped = hp_bar_map(&bar, level, PROT_READ | PROT_WRITE);
	struct hp_vm *vm = hp_vm_open(name);

	hp_vm_slot(vm, &(struct hp_slot){ .name = "bar",
					  .gpa = GPA,
					  .addr = mapped,
					  .length = level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(level),
					  .backing = HP_BAR });
	return vm;
}

/* How many virtual machines the kernel has; -1: it does not tell. */
static int machines(void)
{
	DIR *folder = opendir(DEBUGFS);
	struct dirent *entry;
	int pid, fd, found = 0;

	if (!folder)
		return -1;
	while ((entry = readdir(folder)))
		found += sscanf(entry->d_name, "%d-%d", &pid, &fd) == 2;
	closedir(folder);
	return found;
}

static _Noreturn void run_until_killed(enum hp_level level, const struct hp_gate *running, const struct hp_gate *never)
{
	struct hp_vm_loop loop;

	hp_vm_loop_start(&loop, over_bar("vm", level), GPA);
	checkpoint("running");
	hp_gate_open(running);
	hp_gate_wait(never);
	_exit(0);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	struct hp_gate running, never;
	struct hp_vm *next;
	int status;
	pid_t child;

	ktap_plan(1);
	hp_gate_init(&running);
	hp_gate_init(&never);
	child = hp_fork("child");
	if (!child)
		run_until_killed(options.level, &running, &never);
	hp_gate_wait(&running);
	ktap_value("machines", "%d", machines());
	if (kill(child, SIGKILL))
		hp_die("kill");
	status = hp_reap(child);
	ktap_value("machines-left", "%d", machines());
	checkpoint("dead");
	next = over_bar("next", options.level);
	ktap_value("write", "%s", hp_vm_ended(hp_vm_write(next, GPA, 1)));
	checkpoint("again");
	ktap_ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the child was killed");
	return ktap_finish();
}
