// SPDX-License-Identifier: GPL-2.0-only
/* Sets up what a running system has, for a guest with the host's userland. */
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "init.h"

void be_a_system(void)
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
	if (fd >= 0) { /* a kernel without CONFIG_INET has none */
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
