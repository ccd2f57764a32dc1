// SPDX-License-Identifier: GPL-2.0-only
/* Starts the shell on its terminal, and sets the size of that. */
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "frames.h"
#include "spawn.h"

static struct {
	unsigned int id;
	pid_t pid;
} shell;

/* PAYLOAD: "ROWS COLUMNS" of the shell's terminal; its foreground process group gets SIGWINCH. */
void size_shell(const struct agent *agent, struct request *request)
{
	struct winsize size = { 0 };
	int fd = open(agent->terminal, O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (sscanf(request->payload, "%hu %hu", &size.ws_row, &size.ws_col) != 2)
		refuse(request->id, EINVAL, "size without 'ROWS COLUMNS'");
	else if (fd < 0 || ioctl(fd, TIOCSWINSZ, &size))
		refuse(request->id, errno, "%s", agent->terminal);
	else
		send_text("done", request->id, "%u %u", size.ws_row, size.ws_col);
	if (fd >= 0)
		close(fd);
}

static _Noreturn void become_shell(const struct agent *agent)
{
	int fd;

	as_a_program();
	setsid();
	fd = open(agent->terminal, O_RDWR);
	if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) || dup2(fd, 0) < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
		_exit(127);
	close_range(3, ~0U, 0);
	setenv("PS1", "guest# ", 1);
	setenv("TERM", "vt102", 0);
	execv(agent->shell, agent->shell_argv);
	_exit(127);
}

/* There is one shell; its end is reported to the last request. */
void start_shell(const struct agent *agent, struct request *request)
{
	if (access(agent->shell, X_OK)) {
		refuse(request->id, errno, "no %s in this guest", strrchr(agent->shell, '/') + 1);
		return;
	}
	if (!shell.pid)
		shell.pid = fork();
	if (!shell.pid)
		become_shell(agent);
	if (shell.pid < 0) {
		refuse(request->id, errno, "fork");
		shell.pid = 0;
		return;
	}
	shell.id = request->id;
	send_text("started", request->id, "%d", shell.pid);
}

bool shell_ended(pid_t pid, int status)
{
	if (!shell.pid || pid != shell.pid)
		return false;
	shell.pid = 0;
	send_exit(shell.id, status);
	return true;
}
