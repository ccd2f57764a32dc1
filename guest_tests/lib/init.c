// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of the guest: mounts, modules, vfio-pci, then an agent that runs programs for the host.
 *
 * The kernel command line tells it: hugepfn.vfio=BDF, hugepfn.root=9p|virtiofs for the host's userland,
 * hugepfn.modules=PATH for what modprobe finds there, hugepfn.channel=serial to use the UARTs though there is virtio, and
 * hugepfn.job=poweroff to end where the agent would begin. Two channels: the agent's frames (described in
 * docs/protocol.md) and the events that guest programs write themselves.
 * Nothing of it goes over the console, so kernel messages can never break a frame.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define EVENTS_FD 3
#define JOBS 16
#define ARGUMENTS 256
#define PAYLOAD_MAX (256u << 20) /* as in harness/guest/protocol.py */
#define ACKNOWLEDGED 2048 /* bytes, a quarter of the host's window (harness/guest/agent.py) */

static int agent_fd = -1, events_fd = -1;
static bool on_uarts;
static bool on_host_root; /* / is the host's, copy on write */
static char vfio_bdf[32], vfio_group[16], vfio_why[256] = "no device was asked for";
static char module_why[160]; /* of the first that did not load */

static void complain(const char *fmt, va_list args)
{
	int error = errno;

	fprintf(stderr, "hugepfn init: ");
	vfprintf(stderr, fmt, args);
	fprintf(stderr, ": %s\n", strerror(error));
}

/* PID 1 may not return: the kernel panics, and the host shows this line and the panic. */
static _Noreturn void __attribute__((format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	complain(fmt, args);
	va_end(args);
	exit(1);
}

static void __attribute__((format(printf, 1, 2))) warn(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	complain(fmt, args);
	va_end(args);
}

/* --- small files --------------------------------------------------------------------------------- */

static ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, buffer, size - 1);
	close(fd);
	if (n < 0)
		return -1;
	buffer[n] = 0;
	while (n && (buffer[n - 1] == '\n' || buffer[n - 1] == ' '))
		buffer[--n] = 0;
	return n;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), error;
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	error = errno;
	close(fd);
	errno = error;
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

/* The value of KEY= on the kernel command line, or an empty string. */
static const char *option(const char *key)
{
	static char line[4096];
	static char value[256];
	char *word, *save = NULL;

	if (read_file("/proc/cmdline", line, sizeof(line)) < 0)
		die("/proc/cmdline");
	value[0] = 0;
	for (word = strtok_r(line, " ", &save); word; word = strtok_r(NULL, " ", &save))
		if (!strncmp(word, key, strlen(key)) && word[strlen(key)] == '=')
			snprintf(value, sizeof(value), "%s", word + strlen(key) + 1);
	return value;
}

/* --- getting ready ------------------------------------------------------------------------------- */

static void mounts(void)
{
	static const struct {
		const char *type, *where, *data;
	} table[] = {
		{ "proc", "/proc", "" },
		{ "sysfs", "/sys", "" },
		{ "devtmpfs", "/dev", "" },
		{ "tmpfs", "/tmp", "mode=1777" },
		{ "tmpfs", "/run", "mode=0755" },
		{ "tmpfs", "/dev/shm", "mode=1777" },
		{ "devpts", "/dev/pts", "ptmxmode=0666" },
		{ "debugfs", "/sys/kernel/debug", "" },
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		if (on_host_root && !strcmp(table[i].where, "/tmp"))
			continue; /* a test's own files are in the host's */
		mkdir(table[i].where, 0755);
		if (mount(table[i].type, table[i].where, table[i].type, 0, table[i].data) && errno != EBUSY &&
		    strcmp(table[i].type, "debugfs")) /* few kernels need it, and a small one has none */
			warn("mount %s on %s", table[i].type, table[i].where);
	}
}

/* /modules/order names the files below /modules in insmod order, one a line. */
static void load_modules(void)
{
	FILE *order = fopen("/modules/order", "re");
	char name[256], path[300];

	if (!order)
		return;
	while (fscanf(order, "%255s", name) == 1) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)) {
			if (!*module_why)
				snprintf(module_why, sizeof(module_why), "%.100s: %s", name, strerror(errno));
			warn("module %s", name);
		}
		if (fd >= 0)
			close(fd);
	}
	fclose(order);
}

/*
 * The host's root read only, memory over it, and both together as our root. The host's mounts below / are in it, but for
 * those that are the kernel's (/dev, /proc, /sys) or a running system's (/run).
 */
static void enter_host_root(void)
{
	const char *type = option("hugepfn.root");
	const char *how = strcmp(type, "9p") ? "" : "trans=virtio,version=9p2000.L,access=any,cache=loose,msize=512000";

	if (!*type)
		return;
	mkdir("/lower", 0755);
	mkdir("/upper", 0755);
	mkdir("/root", 0755);
	if (mount("ROOTFS", "/lower", type, MS_RDONLY, how))
		die("mount the host's root (%s)", type);
	if (mount("tmpfs", "/upper", "tmpfs", 0, "mode=0755") || mkdir("/upper/files", 0755) ||
	    mkdir("/upper/work", 0755))
		die("memory over the host's root");
	if (mount("overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work"))
		die("mount an overlay over the host's root");
	if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
		die("change to the host's root");
	on_host_root = true;
	mounts();
}

/* What a running system has, and no file system brings: names in /dev, a name of its own, an address of its own. */
static void be_a_system(void)
{
	static const char *const links[][2] = { { "/proc/self/fd", "/dev/fd" },
						{ "/proc/self/fd/0", "/dev/stdin" },
						{ "/proc/self/fd/1", "/dev/stdout" },
						{ "/proc/self/fd/2", "/dev/stderr" } };
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	const char *modules = option("hugepfn.modules");
	struct utsname uts;
	char path[128];
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	for (size_t i = 0; i < sizeof(links) / sizeof(*links); i++)
		if (symlink(links[i][0], links[i][1]) && errno != EEXIST)
			warn("%s", links[i][1]);
	if (fd >= 0) { /* a kernel without a network has none */
		if (ioctl(fd, SIOCSIFFLAGS, &lo))
			warn("lo");
		close(fd);
	}
	uname(&uts);
	snprintf(path, sizeof(path), "/lib/modules/%s", uts.release);
	mkdir("/lib/modules", 0755);
	if (*modules && symlink(modules, path) && errno != EEXIST)
		warn("%s", path);
	if (sethostname("hugepfn", strlen("hugepfn")))
		warn("the host's name");
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/tests", 1);
	setenv("HOME", "/root", 1);
	setenv("LANG", "C.UTF-8", 1);
	if (chdir("/root") && chdir("/"))
		warn("a home");
}

static void bind_vfio(void)
{
	char path[128], target[PATH_MAX];
	const char *group;
	ssize_t n;

	snprintf(vfio_bdf, sizeof(vfio_bdf), "%s", option("hugepfn.vfio"));
	if (!*vfio_bdf)
		return;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override", vfio_bdf);
	if (write_file(path, "vfio-pci")) {
		snprintf(vfio_why, sizeof(vfio_why), "no PCI device %s", vfio_bdf);
		return;
	}
	/* A driver of its own, built into the kernel, was there first (nvme). */
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver/unbind", vfio_bdf);
	if (!access(path, W_OK) && write_file(path, vfio_bdf))
		warn("unbind %s", vfio_bdf);
	if (write_file("/sys/bus/pci/drivers_probe", vfio_bdf))
		warn("drivers_probe %s", vfio_bdf);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver", vfio_bdf);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0) {
		if (access("/sys/bus/pci/drivers/vfio-pci", F_OK))
			snprintf(vfio_why, sizeof(vfio_why), "this guest has no vfio-pci driver%s%s",
				 *module_why ? ": " : "", module_why);
		else
			snprintf(vfio_why, sizeof(vfio_why), "vfio-pci did not take %s", vfio_bdf);
		return;
	}
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", vfio_bdf);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0) {
		snprintf(vfio_why, sizeof(vfio_why), "%s has no IOMMU group (no IOMMU driver?)", vfio_bdf);
		return;
	}
	target[n] = 0;
	group = strrchr(target, '/');
	snprintf(vfio_group, sizeof(vfio_group), "%.15s", group ? group + 1 : target);
}

/* --- channels ------------------------------------------------------------------------------------ */

/* The node of virtio-serial port NUMBER, which appears some time after the driver: inotify, no polling. */
static int open_virtio_port(int number)
{
	int watch = inotify_init1(IN_CLOEXEC), fd = -1;
	char events[4096], suffix[16], path[300];

	if (watch < 0 || inotify_add_watch(watch, "/dev", IN_CREATE | IN_ATTRIB) < 0)
		die("inotify on /dev");
	snprintf(suffix, sizeof(suffix), "p%d", number);
	for (;;) {
		DIR *dev = opendir("/dev");
		struct dirent *entry;

		while (dev && (entry = readdir(dev))) {
			size_t length = strlen(entry->d_name);

			if (strncmp(entry->d_name, "vport", 5) || length < strlen(suffix) ||
			    strcmp(entry->d_name + length - strlen(suffix), suffix))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			fd = open(path, O_RDWR);
		}
		if (dev)
			closedir(dev);
		if (fd >= 0)
			break;
		if (read(watch, events, sizeof(events)) < 0 && errno != EINTR)
			die("inotify read");
	}
	close(watch);
	return fd;
}

static int open_serial(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY);
	struct termios raw;

	if (fd < 0 || tcgetattr(fd, &raw))
		die("%s", path);
	cfmakeraw(&raw);
	cfsetspeed(&raw, B115200);
	if (tcsetattr(fd, TCSANOW, &raw))
		die("%s: raw mode", path);
	return fd;
}

/* The machine has both: virtio-serial where this kernel drives it, be it built in or loaded by now, else UARTs. */
static void open_channels(void)
{
	on_uarts = !strcmp(option("hugepfn.channel"), "serial") ||
		   access("/sys/bus/virtio/drivers/virtio_console", F_OK) ||
		   access("/sys/bus/pci/drivers/virtio-pci", F_OK);
	agent_fd = on_uarts ? open_serial("/dev/ttyS1") : open_virtio_port(1);
	events_fd = on_uarts ? open_serial("/dev/ttyS2") : open_virtio_port(2);
	if (fcntl(agent_fd, F_SETFD, FD_CLOEXEC) || fcntl(events_fd, F_SETFD, FD_CLOEXEC))
		die("FD_CLOEXEC");
}

/* --- frames: "VERB ID LENGTH\n" and LENGTH bytes -------------------------------------------------- */

static void write_all(int fd, const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t n = write(fd, at, length);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			die("write to the host");
		}
		at += n;
		length -= (size_t)n;
	}
}

static void send_frame(const char *verb, unsigned int id, const void *payload, size_t length)
{
	static char frame[66000];
	int n = snprintf(frame, 64, "%s %u %zu\n", verb, id, length);

	if (length <= sizeof(frame) - 64) {
		memcpy(frame + n, payload, length);
		write_all(agent_fd, frame, (size_t)n + length);
		return;
	}
	write_all(agent_fd, frame, (size_t)n);
	write_all(agent_fd, payload, length);
}

static void __attribute__((format(printf, 3, 4)))
send_text(const char *verb, unsigned int id, const char *fmt, ...)
{
	char text[4096];
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (n >= (int)sizeof(text))
		n = sizeof(text) - 1;
	send_frame(verb, id, text, (size_t)n);
}

/*
 * Nothing holds a sender back on these UARTs: QEMU's has no wire for RTS, so what the tty layer has no room for is
 * dropped (drivers/tty/tty_buffer.c, tty_buffer_request_room()). The host sends no more than we have said we took.
 */
static void acknowledge(size_t length)
{
	static size_t taken;

	taken += length;
	if (!on_uarts || taken < ACKNOWLEDGED)
		return;
	send_text("read", 0, "%zu", taken);
	taken = 0;
}

static void read_exact(void *data, size_t length)
{
	char *at = data;

	while (length) {
		ssize_t n = read(agent_fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("read from the host");
		acknowledge((size_t)n);
		at += n;
		length -= (size_t)n;
	}
}

static void discard(size_t length)
{
	char buffer[4096];

	for (size_t n; length; length -= n) {
		n = length < sizeof(buffer) ? length : sizeof(buffer);
		read_exact(buffer, n);
	}
}

/* --- jobs ---------------------------------------------------------------------------------------- */

/* What a job reads as its standard input. */
enum input {
	INPUT_NULL,
	INPUT_PIPE,
	INPUT_SOCKET, /* its standard output as well: one connection, for a server of inetd's kind */
};

struct job {
	unsigned int id;
	pid_t pid;
	int pipe[2];     /* stdout, stderr; -1 when at its end */
	bool held;       /* the host has no room for more of its output: it stays in the pipes until the job's end */
	int input;       /* what the host says to it goes in here; -1 when it hears nothing (any more) */
	bool input_ends; /* after what is pending */
	char *pending;   /* what the host said and the job has not taken */
	size_t length, taken;
};

static struct job jobs[JOBS];

static struct {
	unsigned int id;
	pid_t pid;
} shell;

/* IN, OUT and ERR are above EVENTS_FD: PID 1 has its own descriptors up to there open from the start. */
static _Noreturn void become(char **argv, int in, int out, int err)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	if (getenv("HUGEPFN_ONE_STREAM")) /* what is said on both stays in order */
		err = out;
	if (in < 0)
		in = open("/dev/null", O_RDONLY);
	if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0 || dup2(events_fd, EVENTS_FD) < 0)
		_exit(127);
	close_range(EVENTS_FD + 1, ~0U, 0);
	setenv("HUGEPFN_EVENTS_FD", "3", 1);
	if (!on_host_root && chdir("/tests")) /* where programs lie: selftests start each other as ./NAME */
		_exit(127);
	execvp(argv[0], argv);
	fprintf(stderr, "exec %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

static _Noreturn void __attribute__((format(printf, 2, 3))) refuse(int err, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vdprintf(err, fmt, args);
	va_end(args);
	_exit(127);
}

/* The job's ends of its channels in THEIRS (stdin, stdout, stderr), ours in JOB. */
static int open_job_channels(struct job *job, enum input input, int theirs[3])
{
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2];

	if (pipe2(err, O_CLOEXEC))
		return -1;
	if (input == INPUT_SOCKET) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in))
			goto no_channels;
		out[0] = fcntl(in[1], F_DUPFD_CLOEXEC, 0);
		out[1] = fcntl(in[0], F_DUPFD_CLOEXEC, 0);
	} else if (pipe2(out, O_CLOEXEC) || (input == INPUT_PIPE && pipe2(in, O_CLOEXEC))) {
		goto no_channels;
	}
	if (in[1] >= 0)
		fcntl(in[1], F_SETFL, O_NONBLOCK);
	job->pipe[0] = out[0];
	job->pipe[1] = err[0];
	job->input = in[1];
	theirs[0] = in[0];
	theirs[1] = out[1];
	theirs[2] = err[1];
	return 0;

no_channels:
	close(err[0]);
	close(err[1]);
	if (out[0] >= 0) {
		close(out[0]);
		close(out[1]);
	}
	return -1;
}

static void close_input(struct job *job)
{
	if (job->input >= 0)
		close(job->input);
	free(job->pending);
	job->input = -1;
	job->pending = NULL;
	job->length = job->taken = 0;
}

/* PAYLOAD: NUL-terminated words: NAME=VALUE for the environment, then an empty word, then argv. */
static void start_job(unsigned int id, char *payload, size_t length, enum input input)
{
	char *argv[ARGUMENTS], *at = payload, *end = payload + length;
	bool environment = true;
	struct job *job = NULL;
	int theirs[3], n = 0;

	for (int i = 0; i < JOBS && !job; i++)
		if (!jobs[i].pid)
			job = &jobs[i];
	if (!job) {
		send_text("error", id, "%d jobs run already", JOBS);
		return;
	}
	*job = (struct job){ .id = id };
	if (open_job_channels(job, input, theirs)) {
		send_text("error", id, "a job's channels: %s%s", strerror(errno),
			  input == INPUT_SOCKET ? " (does this kernel have CONFIG_UNIX?)" : "");
		return;
	}
	job->pid = fork();
	if (!job->pid) {
		for (; at < end; at += strlen(at) + 1) {
			if (environment && !*at)
				environment = false;
			else if (environment)
				putenv(at);
			else if (n == ARGUMENTS - 1)
				refuse(theirs[2], "more than %d words", ARGUMENTS - 1);
			else
				argv[n++] = at;
		}
		argv[n] = NULL;
		if (!n)
			refuse(theirs[2], "no program");
		become(argv, theirs[0], theirs[1], theirs[2]);
	}
	for (int i = 0; i < 3; i++)
		if (theirs[i] >= 0)
			close(theirs[i]);
	if (job->pid < 0) {
		send_text("error", id, "fork: %s", strerror(errno));
		close(job->pipe[0]);
		close(job->pipe[1]);
		close_input(job);
		job->pid = 0;
		return;
	}
	send_text("started", id, "%d", job->pid);
}

static struct job *find_job(unsigned int id)
{
	for (int i = 0; i < JOBS; i++)
		if (jobs[i].pid && jobs[i].id == id)
			return &jobs[i];
	return NULL;
}

/* Gives a job what it takes now of what is pending, and tells the host how many bytes are off our hands. */
static void feed(struct job *job)
{
	size_t before = job->taken;

	while (job->input >= 0 && job->taken < job->length) {
		ssize_t n = write(job->input, job->pending + job->taken, job->length - job->taken);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) { /* it reads no more: what is left is nobody's */
			job->input_ends = true;
			n = (ssize_t)(job->length - job->taken);
		}
		job->taken += (size_t)n;
	}
	if (job->taken > before)
		send_text("took", job->id, "%zu", job->taken - before);
	if (job->taken < job->length)
		return;
	job->length = job->taken = 0;
	if (job->input_ends && job->input >= 0) {
		shutdown(job->input, SHUT_WR); /* the socket's other half lives on in pipe[0] */
		close_input(job);
	}
}

/* More for a job's standard input; nothing ends it. */
static void input_for_job(unsigned int id, const char *payload, size_t length)
{
	struct job *job = find_job(id);
	char *grown;

	if (!job || job->input < 0) { /* too late: it has ended, or closed its input */
		send_text("took", id, "%zu", length);
		return;
	}
	if (!length)
		job->input_ends = true;
	memmove(job->pending, job->pending + job->taken, job->length - job->taken);
	job->length -= job->taken;
	job->taken = 0;
	grown = realloc(job->pending, job->length + length + 1);
	if (!grown)
		die("input of %zu bytes", length);
	memcpy(grown + job->length, payload, length);
	job->pending = grown;
	job->length += length;
	feed(job);
}

static void pump(struct job *job, int which)
{
	char buffer[16384];
	ssize_t n = read(job->pipe[which], buffer, sizeof(buffer));

	if (n > 0) {
		send_frame(which ? "err" : "out", job->id, buffer, (size_t)n);
		return;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	close(job->pipe[which]);
	job->pipe[which] = -1;
}

/* What is still in the pipes goes out before the exit, but nobody waits for a grandchild that holds them. */
static void drain(struct job *job)
{
	for (int which = 0; which < 2; which++) {
		while (job->pipe[which] >= 0) {
			struct pollfd poll_one = { .fd = job->pipe[which], .events = POLLIN };

			if (poll(&poll_one, 1, 0) <= 0) {
				close(job->pipe[which]);
				job->pipe[which] = -1;
			} else {
				pump(job, which);
			}
		}
	}
}

static void tell_exit(unsigned int id, int status)
{
	if (WIFSIGNALED(status))
		send_text("exit", id, "signal %d", WTERMSIG(status));
	else
		send_text("exit", id, "status %d", WEXITSTATUS(status));
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == shell.pid) {
			shell.pid = 0;
			tell_exit(shell.id, status);
		}
		for (int i = 0; i < JOBS; i++) {
			struct job *job = &jobs[i];

			if (job->pid != pid)
				continue;
			kill(-pid, SIGKILL);
			drain(job);
			close_input(job);
			tell_exit(job->id, status);
			job->pid = 0;
		}
	}
}

/* --- the kernel's log ---------------------------------------------------------------------------- */

#define KMSG_ANSWER (256 << 10)
#define KMSG_RECORD 16384 /* more than the longest: CONSOLE_EXT_LOG_MAX, later PRINTK_MESSAGE_MAX */
#define KMSG_OVERTAKEN 64 /* so often may the writers overtake us before we answer with what we have */

static struct {
	int fd, error;
} kmsg;

/* Opened once and kept: from here on each record is read once, whatever the console shows of it. */
static void open_kmsg(void)
{
	kmsg.fd = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	kmsg.error = errno;
}

/* Records into BUFFER, until there are no more (then ENDED) or it is full. */
static ssize_t read_records(char *buffer, size_t size, bool *ended)
{
	size_t length = 0;
	int overtaken = 0;

	*ended = false;
	while (size - length > KMSG_RECORD && overtaken < KMSG_OVERTAKEN) {
		ssize_t n = read(kmsg.fd, buffer + length, KMSG_RECORD);

		if (n < 0 && errno == EAGAIN) {
			*ended = true;
			break;
		}
		if (n < 0 && errno == EPIPE) /* overwritten: the next record's number says how many were */
			overtaken++;
		else if (n < 0 && errno != EINTR)
			return -1;
		if (n > 0)
			length += (size_t)n;
	}
	return (ssize_t)length;
}

/*
 * PAYLOAD: a line to log first; it also closes a record that was written without a newline, which nobody can read before
 * another follows. The answer: "1\n" if there are no more for now, else "0\n", and the records as /dev/kmsg gives them
 * (Documentation/ABI/testing/dev-kmsg).
 */
static void read_kmsg(unsigned int id, const char *payload)
{
	static char answer[KMSG_ANSWER];
	char line[256];
	int length = snprintf(line, sizeof(line), "<6>%s\n", payload);
	ssize_t n;
	bool ended;

	if (kmsg.fd < 0) {
		send_text("error", id, "the kernel's log cannot be read, nor a complaint in it: /dev/kmsg: %s; %s",
			  strerror(kmsg.error),
			  kmsg.error == EPERM ? "boot it without printk.devkmsg=off" : "the kernel needs CONFIG_PRINTK");
		return;
	}
	if (*payload && ((size_t)length >= sizeof(line) || write(kmsg.fd, line, (size_t)length) != length)) {
		send_text("error", id, "write to /dev/kmsg: %s", strerror(errno));
		return;
	}
	n = read_records(answer + 2, sizeof(answer) - 2, &ended);
	if (n < 0) {
		send_text("error", id, "read of /dev/kmsg: %s", strerror(errno));
		return;
	}
	answer[0] = ended ? '1' : '0';
	answer[1] = '\n';
	send_frame("done", id, answer, (size_t)n + 2);
}

/* --- requests ------------------------------------------------------------------------------------ */

/* The folders above PATH. */
static void make_folders(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(path, 0755);
		*slash = '/';
	}
}

/* PAYLOAD: "MODE PATH\n" and the bytes of the file. The folders above it are made. */
static void put_file(unsigned int id, const char *payload, size_t length)
{
	const char *newline = memchr(payload, '\n', length);
	char path[PATH_MAX];
	unsigned int mode;
	int fd;

	if (!newline || sscanf(payload, "%o %4095[^\n]", &mode, path) != 2) {
		send_text("error", id, "put: no 'MODE PATH' line");
		return;
	}
	newline++;
	length -= (size_t)(newline - payload);
	unlink(path); /* a running program keeps its old file */
	make_folders(path);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	if (fd < 0) {
		send_text("error", id, "put %s: %s", path, strerror(errno));
		return;
	}
	while (length) {
		ssize_t n = write(fd, newline, length);

		if (n < 0) {
			send_text("error", id, "put %s: %s", path, strerror(errno));
			close(fd);
			unlink(path);
			return;
		}
		newline += n;
		length -= (size_t)n;
	}
	close(fd);
	send_text("done", id, "%s", path);
}

static void get_file(unsigned int id, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *all = NULL;
	size_t length = 0, room = 0;

	if (fd < 0) {
		send_text("error", id, "get %s: %s", path, strerror(errno));
		return;
	}
	for (;;) {
		ssize_t n;

		if (room - length < 65536) {
			room = room * 2 + 131072;
			all = realloc(all, room);
			if (!all)
				die("get %s: out of memory", path);
		}
		n = read(fd, all + length, room - length);
		if (n < 0)
			send_text("error", id, "get %s: %s", path, strerror(errno));
		if (n <= 0) {
			close(fd);
			if (!n)
				send_frame("done", id, all, length);
			free(all);
			return;
		}
		length += (size_t)n;
	}
}

static void kill_job(unsigned int id, int signal_number)
{
	struct job *job = find_job(id);

	if (job)
		kill(-job->pid, signal_number);
}

static void hold_job(unsigned int id, bool held)
{
	struct job *job = find_job(id);

	if (job)
		job->held = held;
}

/* PAYLOAD: "ROWS COLUMNS" of the terminal behind the shell's line; who is in front there gets SIGWINCH. */
static void size_shell(unsigned int id, const char *payload)
{
	struct winsize size = { 0 };
	int fd = open("/dev/ttyS3", O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (sscanf(payload, "%hu %hu", &size.ws_row, &size.ws_col) != 2)
		send_text("error", id, "size: no 'ROWS COLUMNS'");
	else if (fd < 0 || ioctl(fd, TIOCSWINSZ, &size))
		send_text("error", id, "ttyS3: %s", strerror(errno));
	else
		send_text("done", id, "%u %u", size.ws_row, size.ws_col);
	if (fd >= 0)
		close(fd);
}

/* A shell on ttyS3, for people. There is one; whoever asked last hears when it ends. */
static void start_shell(unsigned int id)
{
	const char *program = on_host_root ? "/bin/sh" : "/bin/busybox", *name = "sh", *plain = NULL;
	sigset_t none;
	int fd;

	shell.id = id;
	if (on_host_root && !access("/bin/bash", X_OK)) {
		program = name = "/bin/bash";
		plain = "--norc"; /* what a person's own brings up takes minutes under TCG */
	}
	if (access(program, X_OK)) {
		send_text("error", id, "no %s in this guest", program + strlen("/bin/"));
		return;
	}
	if (!shell.pid)
		shell.pid = fork();
	if (shell.pid < 0) {
		send_text("error", id, "fork: %s", strerror(errno));
		shell.pid = 0;
		return;
	}
	if (shell.pid) {
		send_text("started", id, "%d", shell.pid);
		return;
	}
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	fd = open("/dev/ttyS3", O_RDWR);
	if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) || dup2(fd, 0) < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
		_exit(127);
	close_range(3, ~0U, 0);
	setenv("PS1", "guest# ", 1);
	setenv("TERM", "vt102", 0);
	if (plain)
		execl(program, name, plain, "-i", (char *)NULL);
	execl(program, name, "-i", (char *)NULL);
	_exit(127);
}

static _Noreturn void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	die("power off");
}

/* Which of what scenarios need is not here, by the names of its modules; built in, they are here as well. */
static const char *missing_modules(void)
{
	static char missing[64];

	snprintf(missing, sizeof(missing), "%s%s",
		 access("/sys/bus/pci/drivers/vfio-pci", F_OK) ? "vfio_pci " : "",
		 access("/sys/module/vfio_iommu_type1", F_OK) ? "vfio_iommu_type1 " : "");
	return missing;
}

static void send_ready(void)
{
	char taint[32] = "0";
	struct utsname uts;

	uname(&uts);
	read_file("/proc/sys/kernel/tainted", taint, sizeof(taint));
	send_text("ready", 0,
		  "channel=%s\nrelease=%s\nversion=%s\ntaint=%s\nmissing=%s\nvfio_bdf=%s\nvfio_group=%s\nvfio_why=%s\n",
		  on_uarts ? "serial" : "virtio", uts.release, uts.version, taint, missing_modules(), vfio_bdf,
		  vfio_group, vfio_group[0] ? "" : vfio_why);
}

static void handle_request(void)
{
	char header[128], verb[32], *payload;
	unsigned int id;
	size_t length, n = 0;

	do {
		if (n == sizeof(header) - 1) {
			errno = EPROTO;
			die("request header too long");
		}
		read_exact(&header[n], 1);
	} while (header[n++] != '\n');
	header[n] = 0;
	if (sscanf(header, "%31s %u %zu", verb, &id, &length) != 3) {
		errno = EPROTO;
		die("request '%s'", header);
	}
	payload = length <= PAYLOAD_MAX ? malloc(length + 1) : NULL;
	if (!payload) {
		discard(length);
		send_text("error", id, "no memory for a request of %zu bytes", length);
		return;
	}
	read_exact(payload, length);
	payload[length] = 0;
	if (!strcmp(verb, "ping"))
		send_text("done", id, "pong");
	else if (!strcmp(verb, "put"))
		put_file(id, payload, length);
	else if (!strcmp(verb, "get"))
		get_file(id, payload);
	else if (!strcmp(verb, "kmsg"))
		read_kmsg(id, payload);
	else if (!strcmp(verb, "run"))
		start_job(id, payload, length, INPUT_NULL);
	else if (!strcmp(verb, "pipe"))
		start_job(id, payload, length, INPUT_PIPE);
	else if (!strcmp(verb, "socket"))
		start_job(id, payload, length, INPUT_SOCKET);
	else if (!strcmp(verb, "in"))
		input_for_job(id, payload, length);
	else if (!strcmp(verb, "kill"))
		kill_job(id, atoi(payload));
	else if (!strcmp(verb, "hold"))
		hold_job(id, true);
	else if (!strcmp(verb, "resume"))
		hold_job(id, false);
	else if (!strcmp(verb, "shell"))
		start_shell(id);
	else if (!strcmp(verb, "size"))
		size_shell(id, payload);
	else if (!strcmp(verb, "poweroff"))
		power_off();
	else
		send_text("error", id, "unknown request '%s'", verb);
	free(payload);
}

static _Noreturn void serve(int signals)
{
	struct signalfd_siginfo info;

	for (;;) {
		struct pollfd fds[2 + 3 * JOBS] = { { .fd = agent_fd, .events = POLLIN },
						    { .fd = signals, .events = POLLIN } };

		for (int i = 0; i < JOBS; i++) {
			struct pollfd *own = &fds[2 + 3 * i];
			const struct job *job = &jobs[i];
			bool waits = job->pid && job->taken < job->length;
			bool speaks = job->pid && !job->held;

			for (int which = 0; which < 2; which++)
				own[which] = (struct pollfd){ .fd = speaks ? job->pipe[which] : -1, .events = POLLIN };
			own[2] = (struct pollfd){ .fd = waits ? job->input : -1, .events = POLLOUT };
		}
		if (poll(fds, 2 + 3 * JOBS, -1) < 0 && errno != EINTR)
			die("poll");
		for (int i = 0; i < JOBS; i++) {
			for (int which = 0; which < 2; which++)
				if (fds[2 + 3 * i + which].revents && jobs[i].pid)
					pump(&jobs[i], which);
			if (fds[2 + 3 * i + 2].revents && jobs[i].pid)
				feed(&jobs[i]);
		}
		if (fds[1].revents) {
			if (read(signals, &info, sizeof(info)) < 0)
				die("signalfd");
			reap();
		}
		if (fds[0].revents & POLLIN)
			handle_request();
		else if (fds[0].revents)
			power_off(); /* the host closed its end */
	}
}

int main(void)
{
	sigset_t child;
	int signals;

	mounts();
	open_kmsg();
	load_modules();
	setenv("PATH", "/tests:/bin:/sbin", 1);
	setenv("HOME", "/", 1);
	enter_host_root();
	if (on_host_root)
		be_a_system();
	bind_vfio();
	write_file("/proc/sys/kernel/kptr_restrict", "0");
	if (*vfio_group) {
		setenv("HUGEPFN_VFIO_GROUP", vfio_group, 1);
		setenv("HUGEPFN_VFIO_BDF", vfio_bdf, 1);
		setenv("VFIO_GROUP", vfio_group, 1); /* for programs that know nothing of us */
		setenv("VFIO_BDF", vfio_bdf, 1);
		setenv("VFIO_SELFTESTS_BDF", vfio_bdf, 1); /* tools/testing/selftests/vfio/lib */
	} else {
		setenv("HUGEPFN_VFIO_WHY", vfio_why, 1);
	}
	mkdir("/tests", 0755);
	if (!strcmp(option("hugepfn.job"), "poweroff"))
		power_off(); /* the benchmark's boot: as far as the agent, and no further */
	open_channels();
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		die("signalfd");
	send_ready();
	serve(signals);
}
