// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: advice about memory does not apply to a device. Whether the kernel accepts or refuses it, the entry of a
 * pfnmap stays as it is: same level, same pfn, dirty.
 *
 * --group=NAME of the table below; each call gets the whole mapping. The errno of CALL is the value CALL, and the
 * checkpoint after it is called CALL.
 * --touch=0: mapped with MAP_POPULATE, but not touched before the calls (for groups that might make entries).
 */
#include <errno.h>
#include <linux/mman.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define RIGHTS (PROT_READ | PROT_WRITE)

/* include/uapi/asm-generic/mman-common.h, for headers that are older */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static struct hp_bar bar;
static size_t length;

static int advise(void *at, int advice)
{
	return madvise(at, length, advice);
}

static int lock(void *at, int flags)
{
	return (int)syscall(SYS_mlock2, at, length, flags);
}

static int unlock(void *at, int unused)
{
	(void)unused;
	return munlock(at, length);
}

static int lock_all(void *at, int flags)
{
	(void)at;
	return mlockall(flags);
}

static int unlock_all(void *at, int unused)
{
	(void)at;
	(void)unused;
	return munlockall();
}

static int sync_it(void *at, int flags)
{
	return msync(at, length, flags);
}

static int seal(void *at, int flags)
{
	return (int)syscall(SYS_mseal, at, length, flags);
}

static int unmap(void *at, int part)
{
	return munmap(at, length / (size_t)part);
}

static int move(void *at, int part)
{
	void *to = hp_reserve(length, length);

	return mremap(at, length / (size_t)part, length / (size_t)part, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED;
}

static int protect(void *at, int prot)
{
	return mprotect(at, length, prot);
}

static int map_over(void *at, int fd)
{
	return mmap(at, length, RIGHTS, MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, fd, 0) == MAP_FAILED;
}

static const struct call {
	const char *group, *name;
	int (*call)(void *at, int argument); /* 0; on failure not 0, and errno */
	int argument;
} calls[] = {
	{ "discard", "dontneed", advise, MADV_DONTNEED },
	{ "discard", "dontneed-locked", advise, 24 },
	{ "discard", "free", advise, MADV_FREE },
	{ "discard", "remove", advise, MADV_REMOVE },
	{ "reclaim", "cold", advise, MADV_COLD },
	{ "reclaim", "pageout", advise, MADV_PAGEOUT },
	{ "populate", "populate-read", advise, MADV_POPULATE_READ },
	{ "populate", "populate-write", advise, MADV_POPULATE_WRITE },
	{ "flags", "collapse", advise, MADV_COLLAPSE },
	{ "flags", "dodump", advise, MADV_DODUMP },
	{ "flags", "dofork", advise, MADV_DOFORK },
	{ "flags", "wipeonfork", advise, MADV_WIPEONFORK },
	{ "guard", "guard-install", advise, GUARD_INSTALL },
	{ "guard", "guard-remove", advise, GUARD_REMOVE },
	{ "poison", "hwpoison", advise, MADV_HWPOISON },
	{ "poison", "soft-offline", advise, 101 },
	{ "accepted", "random", advise, MADV_RANDOM },
	{ "accepted", "sequential", advise, MADV_SEQUENTIAL },
	{ "accepted", "normal", advise, MADV_NORMAL },
	{ "accepted", "willneed", advise, MADV_WILLNEED },
	{ "accepted", "dontdump", advise, MADV_DONTDUMP },
	{ "accepted", "keeponfork", advise, MADV_KEEPONFORK },
	{ "accepted", "dontfork", advise, MADV_DONTFORK },
	{ "huge", "nohugepage", advise, MADV_NOHUGEPAGE },
	{ "huge", "hugepage", advise, MADV_HUGEPAGE },
	{ "huge", "mergeable", advise, MADV_MERGEABLE },
	{ "huge", "unmergeable", advise, MADV_UNMERGEABLE },
	{ "lock", "mlock", lock, 0 },
	{ "lock", "munlock", unlock, 0 },
	{ "lock", "mlock-onfault", lock, MLOCK_ONFAULT },
	{ "lock", "munlock-again", unlock, 0 },
	{ "lock", "mlockall", lock_all, MCL_CURRENT },
	{ "lock", "munlockall", unlock_all, 0 },
	{ "lock", "mlock-last", lock, 0 },
	{ "msync", "async", sync_it, MS_ASYNC },
	{ "msync", "sync", sync_it, MS_SYNC },
	{ "msync", "invalidate", sync_it, MS_INVALIDATE },
	{ "seal", "mseal", seal, 0 },
	{ "seal", "munmap", unmap, 1 },
	{ "seal", "munmap-part", unmap, 2 },
	{ "seal", "mremap", move, 1 },
	{ "seal", "mprotect", protect, PROT_READ },
	{ "seal", "mmap-fixed", map_over, -1 },
	{ "seal", "dontneed", advise, MADV_DONTNEED },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const char *group = hp_option(&options, "group", "discard");
	bool touched = atoi(hp_option(&options, "touch", "1"));
	unsigned int made = 0;
	char *base;

	if (!strcmp(group, "seal") && syscall(SYS_mseal, NULL, 0, 1) && errno == ENOSYS)
		ktap_skip_all("the kernel has no mseal()");
	bar = hp_bar_open(2);
	length = options.level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(options.level);
	base = hp_bar_map_area(&bar, &(struct hp_bar_area){ .length = length,
							    .align = hp_leaf_size(options.level),
							    .prot = RIGHTS,
							    .flags = touched ? 0 : MAP_POPULATE });
	ktap_plan(1);
	if (touched)
		hp_write(base, 1);
	checkpoint("before");
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		const struct call *one = &calls[i];
		int error;

		if (strcmp(one->group, group))
			continue;
		made++;
		error = one->call(base, one->argument) ? errno : 0;
		ktap_value(one->name, "%s", hp_errno_name(error));
		checkpoint(one->name);
	}
	ktap_value("write-faults", "%ld", hp_write_faults(base, 2));
	ktap_ok(made > 0, "%u calls of %s", made, group);
	return ktap_finish();
}
