/* SPDX-License-Identifier: GPL-2.0-only */
/* PID 1 of the guest: what is set up before the agent serves the host. */
#ifndef HUGEPFN_INIT_H
#define HUGEPFN_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* --- complain.c --- */

/* PID 1 may not return: the kernel panics, and the host shows this line and the panic. */
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* --- small_files.c --- */

/* A file's text without the blanks at its end; its length, or -1. */
ssize_t read_file(const char *path, char *buffer, size_t size);
int write_file(const char *path, const char *text);

/* The value of KEY= on the kernel command line, or an empty string; valid until the next call. */
const char *option(const char *key);

/* --- mounts.c --- */

/* Mounts what every guest has; on the host's root, /tmp is the host's. */
void mount_ours(bool on_host_root);

/* With hugepfn.root=9p|virtiofs: / becomes the host's, copy on write. Returns whether it did. */
bool enter_host_root(void);

/* --- system.c --- */

/* Sets up what a running system has beside file systems: links in /dev, the loopback interface, a host name. */
void be_a_system(void);

/* --- modules.c --- */

void load_modules(void);

/* The first module that did not load, and why; empty if all did. */
const char *module_failure(void);

/* The names of modules that scenarios need and this kernel has neither loaded nor built in. */
const char *missing_modules(void);

/* --- vfio.c --- */

struct vfio_device {
	char bdf[32], group[16];
	char why[256]; /* why there is no group */
};

/* Binds the device of hugepfn.vfio=BDF to vfio-pci, and describes it to programs in the environment. */
void bind_vfio(struct vfio_device *device);

/* --- channels.c --- */

struct channels {
	int agent, events;
	bool on_uarts;
};

void open_channels(struct channels *channels);

#endif
