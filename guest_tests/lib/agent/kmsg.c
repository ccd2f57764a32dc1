// SPDX-License-Identifier: GPL-2.0-only
/* Reads the kernel's log, each record once, independent of what the console shows. */
#include "kmsg.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef KMSG_ANSWER /* tests make it smaller */
#define KMSG_ANSWER (256 << 10)
#endif
#define KMSG_RECORD 16384 /* more than the longest: CONSOLE_EXT_LOG_MAX, later PRINTK_MESSAGE_MAX */
#define KMSG_OVERTAKEN 64 /* after so many overruns we answer with what we have */

/* Reads records into BUFFER until there are no more (ENDED is then set) or it is full. */
static ssize_t read_records(int kmsg, char *buffer, size_t size, bool *ended)
{
	size_t length = 0;
	int overtaken = 0;

	*ended = false;
	while (size - length > KMSG_RECORD && overtaken < KMSG_OVERTAKEN) {
		ssize_t n = read(kmsg, buffer + length, KMSG_RECORD);

		if (!n || (n < 0 && errno == EAGAIN)) {
			*ended = true;
			break;
		}
		if (n < 0 && errno == EPIPE) /* overwritten: the next record's number tells how many records are lost */
			overtaken++;
		else if (n < 0 && errno != EINTR)
			return -1;
		if (n > 0)
			length += (size_t)n;
	}
	return (ssize_t)length;
}

/* Writes a line to the log. This also ends a record without a newline, which cannot be read before another follows. */
static bool write_line(int kmsg, const char *text)
{
	char line[256];
	int length = snprintf(line, sizeof(line), "<6>%s\n", text);

	if ((size_t)length < sizeof(line))
		return write_all(kmsg, line, (size_t)length);
	errno = EMSGSIZE;
	return false;
}

/*
 * PAYLOAD: a line to log first. The answer: "1\n" if there are no more records for now, else "0\n", and the records as
 * /dev/kmsg gives them (Documentation/ABI/testing/dev-kmsg).
 */
void read_kmsg(const struct agent *agent, struct request *request)
{
	static char answer[KMSG_ANSWER];
	bool ended;
	ssize_t n;

	if (agent->kmsg < 0) {
		refuse(request->id, agent->kmsg_error, "the kernel log cannot be read (%s): /dev/kmsg",
		       agent->kmsg_error == EPERM ? "boot without printk.devkmsg=off" : "the kernel needs CONFIG_PRINTK");
		return;
	}
	if (request->length && !write_line(agent->kmsg, request->payload)) {
		refuse(request->id, errno, "write to /dev/kmsg");
		return;
	}
	n = read_records(agent->kmsg, answer + 2, sizeof(answer) - 2, &ended);
	if (n < 0) {
		refuse(request->id, errno, "read of /dev/kmsg");
		return;
	}
	memcpy(answer, ended ? "1\n" : "0\n", 2);
	send_frame("done", request->id, answer, (size_t)n + 2);
}
