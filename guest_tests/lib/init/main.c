// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of the guest: mounts, modules, vfio-pci, then the agent (../agent), which runs programs for the host.
 *
 * Its options are on the kernel command line: hugepfn.vfio=BDF, hugepfn.root=9p|virtiofs for the host's userland,
 * hugepfn.modules=PATH for what modprobe finds there, hugepfn.channel=serial to use the UARTs even if there is virtio,
 * and hugepfn.job=poweroff to power off before the agent starts. There are two channels: the agent's frames (described
 * in docs/protocol.md) and the events that guest programs write themselves.
 * Neither uses the console, so kernel messages can never break a frame.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "../agent/agent.h"
#include "init.h"

static _Noreturn void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	die("power off");
}

/* Opened once and kept open, so that each record is read once. */
static void open_kmsg(struct agent *agent)
{
	agent->kmsg = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	agent->kmsg_error = errno;
}

static void choose_shell(struct agent *agent, bool on_host_root)
{
	/* A user's .bashrc can take minutes under TCG. */
	static char *bash[] = { "/bin/bash", "--norc", "-i", NULL }, *sh[] = { "sh", "-i", NULL };
	bool has_bash = on_host_root && !access("/bin/bash", X_OK);

	agent->shell = has_bash ? "/bin/bash" : on_host_root ? "/bin/sh" : "/bin/busybox";
	agent->shell_argv = has_bash ? bash : sh;
}

/* What the host is told about this guest. */
static void describe(const struct channels *channels, const struct vfio_device *device, char *text, size_t size)
{
	char taint[32] = "0";
	struct utsname uts;

	uname(&uts);
	read_file("/proc/sys/kernel/tainted", taint, sizeof(taint));
	snprintf(text, size,
		 "channel=%s\nrelease=%s\nversion=%s\ntaint=%s\nmissing=%s\nvfio_bdf=%s\nvfio_group=%s\nvfio_why=%s\n",
		 channels->on_uarts ? "serial" : "virtio", uts.release, uts.version, taint, missing_modules(),
		 device->bdf, device->group, device->why);
}

int main(void)
{
	struct agent agent = { .terminal = "/dev/ttyS3" };
	struct channels channels;
	struct vfio_device device;
	bool on_host_root;
	char ready[4096];

	mount_ours(false);
	open_kmsg(&agent);
	load_modules();
	setenv("PATH", "/tests:/bin:/sbin", 1);
	setenv("HOME", "/", 1);
	on_host_root = enter_host_root();
	if (on_host_root)
		be_a_system();
	bind_vfio(&device);
	write_file("/proc/sys/kernel/kptr_restrict", "0");
	write_file("/proc/sys/kernel/sysrq", "1"); /* for the host, if we do not answer it (harness/observe/hung.py) */
	mkdir("/tests", 0755);
	if (!strcmp(option("hugepfn.job"), "poweroff"))
		power_off(); /* the benchmark's boot ends before the agent */
	open_channels(&channels);
	agent.frames = channels.agent;
	agent.lossy = channels.on_uarts;
	agent.events = channels.events;
	agent.jobs_dir = on_host_root ? NULL : "/tests"; /* where programs lie: selftests start each other as ./NAME */
	choose_shell(&agent, on_host_root);
	describe(&channels, &device, ready, sizeof(ready));
	if (serve(&agent, ready) == LINK_CLOSED)
		power_off();
	for (;;) /* the host was told why, and stops the machine: a power-off would look like the kernel's doing */
		pause();
}
