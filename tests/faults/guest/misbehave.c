// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest program that goes wrong on purpose, after a number of checkpoints: --do=HOW --at=N.
 *
 * Invariant: none. What it does to the guest is what the host has to name.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hugepfn.h"

#define CHECKPOINTS 6

static void nothing(const struct hp_options *options)
{
	(void)options;
}

static void crash(const struct hp_options *options)
{
	raise(atoi(hp_option(options, "signal", "11")));
}

static void leave(const struct hp_options *options)
{
	_exit(atoi(hp_option(options, "status", "3")));
}

static void hang(const struct hp_options *options)
{
	(void)options;
	pause();
}

static void spin(const struct hp_options *options)
{
	(void)options;
	for (;;)
		__builtin_ia32_pause();
}

static void sysrq(const struct hp_options *options)
{
	hp_write_file("/proc/sysrq-trigger", hp_option(options, "key", "c"));
}

/* The host has replaced the code of this system call. Real programs make it never. */
static void system_call(const struct hp_options *options)
{
	const char *lockup = hp_option(options, "watchdog", "");

	if (*lockup) {
		hp_write_file("/proc/sys/kernel/softlockup_panic", lockup);
		hp_write_file("/proc/sys/kernel/watchdog_thresh", "1");
	}
	syscall(SYS_sysfs, 3);
}

static void out_of_memory(const struct hp_options *options)
{
	const char *panic = hp_option(options, "panic", "0");

	hp_write_file("/proc/sys/vm/panic_on_oom", panic);
	for (;;) {
		char *pages = mmap(NULL, MIB(8), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (pages == MAP_FAILED)
			hp_die("mmap");
		memset(pages, 1, MIB(8));
	}
}

static void print_endlessly(const struct hp_options *options)
{
	static char line[64 << 10];

	(void)options;
	memset(line, 'x', sizeof(line) - 1);
	for (size_t at = 63; at < sizeof(line); at += 64)
		line[at] = '\n';
	for (;;)
		if (write(STDOUT_FILENO, line, sizeof(line)) < 0)
			hp_die("stdout");
}

static void print(const struct hp_options *options)
{
	const char *text = hp_option(options, "text", "");

	for (; *text; text++)
		putchar(*text == '~' ? '\n' : *text);
	fflush(stdout);
	_exit(0);
}

/* BYTES of text to PATH, a line with each write. The kernel log keeps them, and does not show them on the console. */
static void flood(const struct hp_options *options)
{
	long long left = atoll(hp_option(options, "bytes", "104857600"));
	int fd = open(hp_option(options, "path", "/dev/kmsg"), O_WRONLY | O_NOCTTY);
	size_t length = (size_t)atoi(hp_option(options, "line", "900"));
	char *line = malloc(length);

	if (fd < 0 || !line)
		hp_die("flood");
	memset(line, 'f', length - 1);
	memcpy(line, "<7>", 3);
	line[length - 1] = '\n';
	for (ssize_t n; left > 0; left -= n) {
		n = write(fd, line, length);
		if (n < 0)
			hp_die("flood");
	}
	close(fd);
	free(line);
}

/* PID 1's own descriptor of a virtio port: 1 is the agent's, 2 that of the events. */
static int agents_port(int number)
{
	int init = (int)syscall(SYS_pidfd_open, 1, 0);
	char link[64], target[64], suffix[8];

	snprintf(suffix, sizeof(suffix), "p%d", number);
	for (int fd = 3; fd < 64; fd++) {
		ssize_t length;

		snprintf(link, sizeof(link), "/proc/1/fd/%d", fd);
		length = readlink(link, target, sizeof(target) - 1);
		if (length < 0)
			continue;
		target[length] = 0;
		if (!strncmp(target, "/dev/vport", 10) && !strcmp(target + length - strlen(suffix), suffix))
			return (int)syscall(SYS_pidfd_getfd, init, fd, 0);
	}
	errno = ENOENT;
	hp_die("port %d of PID 1", number);
}

static void write_whole(int fd, const char *data, size_t length)
{
	for (ssize_t n; length; data += n, length -= (size_t)n) {
		n = write(fd, data, length);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			hp_die("port");
		if (n < 0)
			n = 0;
	}
}

/* A copy of TEXT in which ~ is a newline, and @ the caller's pid. */
static char *expanded(const char *text)
{
	char *copy = malloc(strlen(text) * 8 + 1), *at = copy;

	if (!copy)
		hp_die("malloc");
	for (; *text; text++)
		if (*text == '@')
			at += sprintf(at, "%d", getpid());
		else
			*at++ = *text == '~' ? '\n' : *text;
	*at = 0;
	return copy;
}

/* --text to the port, --times times; then --random bytes from a generator with the seed --seed. */
static void lie(const struct hp_options *options)
{
	int fd = agents_port(atoi(hp_option(options, "port", "1")));
	char *text = expanded(hp_option(options, "text", "")), noise[4096], many[64 << 10];
	long times = atol(hp_option(options, "times", "1")), bytes = atol(hp_option(options, "random", "0"));
	size_t length = strlen(text), fit = length ? sizeof(many) / length : 1;

	for (size_t i = 0; i < fit; i++)
		memcpy(many + i * length, text, length);
	for (; times >= (long)fit; times -= (long)fit)
		write_whole(fd, many, fit * length);
	write_whole(fd, many, (size_t)times * length);
	srandom((unsigned int)atoi(hp_option(options, "seed", "1")));
	for (; bytes > 0; bytes -= (long)sizeof(noise)) {
		for (size_t i = 0; i < sizeof(noise); i++)
			noise[i] = (char)random();
		write_whole(fd, noise, sizeof(noise));
	}
	close(fd);
	free(text);
}

/* Overwrites the code of PID 1, whose next instruction is then a breakpoint that nobody expects. */
static void kill_agent(const struct hp_options *options)
{
	unsigned long start, end;
	char permissions[8], breakpoints[4096];
	FILE *maps = fopen("/proc/1/maps", "r");
	int memory = open("/proc/1/mem", O_RDWR);

	(void)options;
	memset(breakpoints, 0xcc, sizeof(breakpoints));
	while (maps && memory >= 0 && fscanf(maps, "%lx-%lx %7s%*[^\n]", &start, &end, permissions) == 3)
		if (permissions[2] == 'x' && start < 1UL << 47 && permissions[1] != 'w')
			for (; start < end; start += sizeof(breakpoints))
				if (pwrite(memory, breakpoints, sizeof(breakpoints), (off_t)start) < 0)
					break;
}

static void jump(const struct hp_options *options)
{
	long long by = atoll(hp_option(options, "seconds", "1")) % 300000000;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	now.tv_sec += by % 2 ? by : -by;
	if (clock_settime(CLOCK_REALTIME, &now))
		hp_die("clock_settime");
}

static const struct {
	const char *name;
	void (*act)(const struct hp_options *options);
} ways[] = {
	{ "nothing", nothing }, { "crash", crash }, { "leave", leave }, { "hang", hang }, { "spin", spin },
	{ "sysrq", sysrq }, { "system-call", system_call }, { "out-of-memory", out_of_memory },
	{ "print-endlessly", print_endlessly }, { "print", print }, { "flood", flood }, { "lie", lie },
	{ "kill-agent", kill_agent }, { "jump", jump },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	int at = atoi(hp_option(&options, "at", "1"));

	ktap_plan(1);
	for (int i = 1; i <= CHECKPOINTS; i++) {
		char name[16];

		snprintf(name, sizeof(name), "c%d", i);
		checkpoint(name);
		if (i == at)
			hp_choose(&options, "do", "nothing", ways)->act(&options);
	}
	ktap_ok(true, "went through all checkpoints");
	return ktap_finish();
}
