// SPDX-License-Identifier: GPL-2.0-only
/* Opens the channels for the agent's frames and the events of guest programs: virtio-serial ports, or UARTs. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <termios.h>
#include <unistd.h>

#include "init.h"

/* Opens the node of virtio-serial port NUMBER, which appears some time after the driver: inotify, no polling. */
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

		while (dev && fd < 0 && (entry = readdir(dev))) {
			size_t length = strlen(entry->d_name);

			if (strncmp(entry->d_name, "vport", 5) || length < strlen(suffix) ||
			    strcmp(entry->d_name + length - strlen(suffix), suffix))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
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
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios raw;

	if (fd < 0 || tcgetattr(fd, &raw))
		die("%s", path);
	cfmakeraw(&raw);
	cfsetspeed(&raw, B115200);
	if (tcsetattr(fd, TCSANOW, &raw))
		die("%s: raw mode", path);
	return fd;
}

/* The machine has both: virtio-serial if this kernel has the driver, built in or loaded by now, else UARTs. */
void open_channels(struct channels *channels)
{
	channels->on_uarts = !strcmp(option("hugepfn.channel"), "serial") ||
			     access("/sys/bus/virtio/drivers/virtio_console", F_OK) ||
			     access("/sys/bus/pci/drivers/virtio-pci", F_OK);
	channels->agent = channels->on_uarts ? open_serial("/dev/ttyS1") : open_virtio_port(1);
	channels->events = channels->on_uarts ? open_serial("/dev/ttyS2") : open_virtio_port(2);
}
