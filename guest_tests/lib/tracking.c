// SPDX-License-Identifier: GPL-2.0-only
/* Page tracking: clear_refs, the PAGEMAP_SCAN ioctl, userfaultfd. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hugepfn.h"
#include "tracking.h"

#define SCAN_RANGES 64

/* struct pm_scan_arg of include/uapi/linux/fs.h (6.7) */
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define SCAN_CATEGORIES 0xff

void hp_clear_refs(pid_t pid, const char *what)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	errno = hp_write_file(path, what);
	if (errno)
		hp_die("write of %s to %s", what, path);
}

static void say_ranges(const char *name, const void *addr, const struct hp_scan_range *ranges, long count)
{
	static const char *const names[] = { "WPALLOWED", "WRITTEN", "FILE", "PRESENT",
					     "SWAPPED",   "PFNZERO", "HUGE", "SOFT_DIRTY" };
	char text[SCAN_RANGES * 96];
	size_t length = 0;

	for (long i = 0; i < count; i++) {
		length += (size_t)snprintf(text + length, sizeof(text) - length, "%s%zu-%zu:", i ? "," : "",
					   (size_t)(ranges[i].start - (uint64_t)addr) / 4096,
					   (size_t)(ranges[i].end - (uint64_t)addr) / 4096);
		for (unsigned int bit = 0, said = 0; bit < 8; bit++)
			if (ranges[i].categories >> bit & 1)
				length += (size_t)snprintf(text + length, sizeof(text) - length, "%s%s",
							   said++ ? "+" : "", names[bit]);
	}
	ktap_value(name, "%s", length ? text : "none");
}

long hp_scan(const void *addr, size_t length, uint64_t flags, uint64_t mask, struct hp_scan_range *ranges, size_t room)
{
	struct scan_arg arg = { .size = sizeof(arg),
				.flags = flags,
				.start = (uint64_t)addr,
				.end = (uint64_t)addr + length,
				.vec = (uint64_t)ranges,
				.vec_len = room,
				.category_mask = mask,
				.return_mask = ranges ? SCAN_CATEGORIES : 0 };
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	long count;

	if (fd < 0)
		hp_die("/proc/self/pagemap");
	count = ioctl(fd, SCAN_IOCTL, &arg);
	if (count < 0)
		count = -errno;
	close(fd);
	return count;
}

void hp_say_scan(const char *name, const void *addr, size_t length, uint64_t flags, uint64_t mask)
{
	struct hp_scan_range ranges[SCAN_RANGES];
	long count = hp_scan(addr, length, flags, mask, ranges, SCAN_RANGES);

	if (count < 0)
		ktap_value(name, "%s", hp_errno_name((int)-count));
	else
		say_ranges(name, addr, ranges, count);
}

int hp_uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), error;

	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api)) {
		error = errno;
		close(fd);
		return -error;
	}
	return fd;
}

int hp_uffd_register(int uffd, void *addr, size_t length, uint64_t mode)
{
	struct uffdio_register arg = { .range = { .start = (uint64_t)addr, .len = length }, .mode = mode };

	return ioctl(uffd, UFFDIO_REGISTER, &arg) ? errno : 0;
}

int hp_uffd_protect(int uffd, void *addr, size_t length, bool protect)
{
	struct uffdio_writeprotect arg = { .range = { .start = (uint64_t)addr, .len = length },
					   .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? errno : 0;
}
