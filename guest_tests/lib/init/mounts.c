// SPDX-License-Identifier: GPL-2.0-only
/* Mounts what every guest has, and the host's root if the guest is to have the host's userland. */
#include <errno.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

void mount_ours(bool on_host_root)
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
			continue; /* a test's own files are in the host's /tmp */
		mkdir(table[i].where, 0755);
		if (mount(table[i].type, table[i].where, table[i].type, 0, table[i].data) && errno != EBUSY &&
		    strcmp(table[i].type, "debugfs")) /* few kernels need it, and a small one has none */
			warn("mount %s on %s", table[i].type, table[i].where);
	}
}

/*
 * Makes an overlay of the host's root, read only, and memory our root. It contains the host's mounts below /, but for
 * those of the kernel (/dev, /proc, /sys) and of a running system (/run).
 */
bool enter_host_root(void)
{
	const char *type = option("hugepfn.root");
	const char *how = strcmp(type, "9p") ? "" : "trans=virtio,version=9p2000.L,access=any,cache=loose,msize=512000";

	if (!*type)
		return false;
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
	mount_ours(true);
	return true;
}
