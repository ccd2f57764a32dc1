// SPDX-License-Identifier: GPL-2.0-only
/* Writes the files that the host sends, and reads those that it asks for. */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Makes the directories above PATH. */
static void make_directories(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(path, 0755);
		*slash = '/';
	}
}

/* "MODE PATH\n" at the start of a payload; what follows is the file. Returns NULL if there is no such line. */
static char *parse_put(struct request *request, mode_t *mode, char **data)
{
	char *newline = memchr(request->payload, '\n', request->length), *path;
	unsigned long bits;

	if (!newline || request->payload[0] < '0' || request->payload[0] > '7')
		return NULL;
	bits = strtoul(request->payload, &path, 8);
	if (bits > 07777 || *path++ != ' ' || path == newline || memchr(path, 0, (size_t)(newline - path)))
		return NULL;
	*newline = 0;
	*mode = (mode_t)bits;
	*data = newline + 1;
	return path;
}

/* PAYLOAD: "MODE PATH\n" and the bytes of the file. The directories above it are made. */
void put_file(struct request *request)
{
	char *data, *path;
	bool written;
	mode_t mode;
	int fd;

	path = parse_put(request, &mode, &data);
	if (!path) {
		refuse(request->id, EINVAL, "put without a line 'MODE PATH'");
		return;
	}
	unlink(path); /* a running program keeps its old file */
	make_directories(path);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	if (fd < 0) {
		refuse(request->id, errno, "put %s", path);
		return;
	}
	written = write_all(fd, data, request->length - (size_t)(data - request->payload));
	if (close(fd) || !written) {
		refuse(request->id, errno, "put %s", path);
		unlink(path);
		return;
	}
	send_text("done", request->id, "%s", path);
}

/* All of FD, at most PAYLOAD_MAX bytes; NULL with errno set if it cannot be read. */
static char *read_all(int fd, size_t *length)
{
	char *all = NULL, *grown;
	size_t room = 0;
	ssize_t n = 1;

	for (*length = 0; n; *length += (size_t)n) {
		if (room - *length < 65536) {
			room = room * 2 + 131072;
			grown = realloc(all, room);
			if (!grown)
				break;
			all = grown;
		}
		n = read(fd, all + *length, room - *length);
		if (n < 0)
			break;
		if ((size_t)n > PAYLOAD_MAX - *length) {
			errno = EFBIG;
			break;
		}
	}
	if (!n)
		return all;
	free(all);
	return NULL;
}

/* PAYLOAD: a path. O_NONBLOCK: the agent does not wait for a writer of a FIFO or for a terminal. */
void get_file(struct request *request)
{
	const char *path = request->payload;
	char *data = NULL;
	size_t length;
	int fd;

	if (strlen(path) != request->length) {
		refuse(request->id, EINVAL, "get %s, then a NUL", path);
		return;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0)
		data = read_all(fd, &length);
	if (data)
		send_frame("done", request->id, data, length);
	else
		refuse(request->id, errno, "get %s", path);
	free(data);
	if (fd >= 0)
		close(fd);
}
