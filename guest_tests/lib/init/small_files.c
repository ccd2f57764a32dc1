// SPDX-License-Identifier: GPL-2.0-only
/* Reads and writes small files of /proc and /sys, including the kernel command line. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "init.h"

ssize_t read_file(const char *path, char *buffer, size_t size)
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

int write_file(const char *path, const char *text)
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

const char *option(const char *key)
{
	static char line[4096];
	char *word, *save = NULL;

	if (read_file("/proc/cmdline", line, sizeof(line)) < 0)
		die("/proc/cmdline");
	for (word = strtok_r(line, " ", &save); word; word = strtok_r(NULL, " ", &save))
		if (!strncmp(word, key, strlen(key)) && word[strlen(key)] == '=')
			return word + strlen(key) + 1;
	return "";
}
