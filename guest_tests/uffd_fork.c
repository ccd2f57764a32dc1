// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: fork() copies the entries of shared memory whose VMA has VM_UFFD_WP in the child, and with them the write
 * protection of userfaultfd. The child has VM_UFFD_WP only if the userfaultfd has UFFD_FEATURE_EVENT_FORK.
 *
 * --memory=shmem     four pages of a memfd (--level=pte)
 * --memory=hugetlb   one page of hugetlbfs of --level (pmd, pud)
 * --memory=devdax    one leaf of device-dax, four at pte, registered for asynchronous WP; nothing is protected
 * --events=yes|no    whether the userfaultfd has UFFD_FEATURE_EVENT_FORK
 *
 * Mappings: "memory". Checkpoints: written, protected (not with devdax), readonly, writable, forked, child-written,
 *     parent-written. Values: write-child, write-parent: how the first write after fork() ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/devices.h"
#include "lib/hugepfn.h"
#include "lib/tracking.h"

#define RIGHTS (PROT_READ | PROT_WRITE)
#define HUGETLB_1G (30 << 26) /* MAP_HUGE_1GB of linux/mman.h */

static char *memory;
static size_t length;
static enum hp_level level;
static int uffd, child_uffd = -1;

static int memory_file(void)
{
	int fd = memfd_create("outlier", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)length))
		hp_die("memfd");
	return fd;
}

static void reserve_hugetlb(void)
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%zukB/nr_hugepages", length / KIB(1));
	hp_write_file(path, "1"); /* if it is refused, mmap() says so */
}

static const struct kind {
	const char *name;
	int flags;
	bool async; /* only asynchronous WP can be registered, and nothing is protected */
} kinds[] = {
	{ "shmem", MAP_SHARED, false },
	{ "hugetlb", MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, false },
	{ "devdax", MAP_SHARED, true },
};

static const struct choice {
	const char *name;
	bool yes;
} choices[] = { { "yes", true }, { "no", false } };

static void name_memory(int prot)
{
	hp_map(&(struct hp_mapping){ .name = "memory",
				     .addr = memory,
				     .length = length,
				     .prot = prot,
				     .backing = HP_RAM,
				     /* pagemap_read() takes a pud of device-dax to pieces. */
				     .pagemap_pages = level == HP_PUD ? 0 : length / KIB(4) });
}

static void map_memory(const struct kind *kind)
{
	size_t leaf = hp_leaf_size(level), align = leaf > MIB(2) ? leaf : MIB(2);
	int fd = -1, flags = kind->flags | MAP_FIXED;

	length = level == HP_PTE ? 4 * KIB(4) : leaf;
	if (kind->async)
		fd = hp_devdax_open(level);
	else if (!(kind->flags & MAP_HUGETLB))
		fd = memory_file();
	else
		reserve_hugetlb();
	memory = (char *)hp_reserve(2 * align + length, align) + align;
	if (kind->flags & MAP_HUGETLB && level == HP_PUD)
		flags |= HUGETLB_1G;
	if (mmap(memory, length, RIGHTS, flags, fd, 0) == MAP_FAILED) {
		if (kind->flags & MAP_HUGETLB)
			ktap_skip_all("no page of hugetlbfs of %zu bytes: %s", length, strerror(errno));
		hp_die("mmap of %s", kind->name);
	}
	name_memory(RIGHTS);
}

static void protect(int prot)
{
	if (mprotect(memory, length, prot))
		hp_die("mprotect");
	name_memory(prot);
}

/* fork() returns only after somebody has read of it. */
static void *read_event(void *unused)
{
	struct uffd_msg message;
	struct pollfd ready = { .fd = uffd, .events = POLLIN };

	(void)unused;
	if (poll(&ready, 1, -1) != 1 || read(uffd, &message, sizeof(message)) != sizeof(message))
		hp_die("read of the userfaultfd");
	if (message.event != UFFD_EVENT_FORK) {
		errno = EPROTO;
		hp_die("userfaultfd event %#x", message.event);
	}
	child_uffd = (int)message.arg.fork.ufd;
	return NULL;
}

static void release(int fd)
{
	errno = hp_uffd_protect(fd, memory, length, false);
	if (errno)
		hp_die("UFFDIO_WRITEPROTECT, release");
}

static void say_try(const char *name, uint64_t value)
{
	struct hp_caught caught = hp_try_write(memory, value);

	ktap_value(name, "%s", hp_signal_name(caught.signal));
}

static _Noreturn void child_main(const struct hp_gate *go)
{
	hp_gate_wait(go);
	say_try("write-child", 2);
	hp_gate_open(go + 1);
	hp_gate_wait(go);
	hp_write(memory, 3);
	checkpoint("child-written");
	hp_gate_open(go + 1);
	hp_gate_wait(go);
	_exit(0);
}

static void open_uffd(const struct kind *kind, bool events)
{
	uint64_t features = (events ? UFFD_FEATURE_EVENT_FORK : 0) |
			    (kind->async ? HP_UFFD_FEATURE_WP_ASYNC : UFFD_FEATURE_SIGBUS);
	int error;

	uffd = hp_uffd_open(features);
	if (uffd < 0)
		ktap_skip_all("userfaultfd with features %#llx: %s", (unsigned long long)features, strerror(-uffd));
	error = hp_uffd_register(uffd, memory, length, UFFDIO_REGISTER_MODE_WP);
	if (error)
		ktap_skip_all("UFFDIO_REGISTER for WP of this memory: %s", strerror(error));
}

static void fork_and_write(bool events, bool protected)
{
	struct hp_gate go[2];
	pthread_t thread;
	pid_t child;

	hp_gate_init(&go[0]);
	hp_gate_init(&go[1]);
	errno = events ? pthread_create(&thread, NULL, read_event, NULL) : 0;
	if (errno)
		hp_die("pthread_create");
	child = hp_fork("child");
	if (!child)
		child_main(go);
	if (events)
		pthread_join(thread, NULL);
	checkpoint("forked");
	hp_gate_open(&go[0]);
	hp_gate_wait(&go[1]);
	if (events && protected)
		release(child_uffd);
	hp_gate_open(&go[0]);
	hp_gate_wait(&go[1]);
	say_try("write-parent", 4);
	if (protected)
		release(uffd);
	hp_write(memory, 5);
	checkpoint("parent-written");
	hp_gate_open(&go[0]);
	ktap_ok(hp_reap(child) == 0, "the child wrote");
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct kind *kind = hp_choose(&options, "memory", "shmem", kinds);
	bool events = hp_choose(&options, "events", "yes", choices)->yes;

	level = options.level;
	map_memory(kind);
	open_uffd(kind, events);
	ktap_plan(1);
	for (size_t page = 0; page < length; page += hp_leaf_size(level))
		hp_write(memory + page, 1);
	checkpoint("written");
	if (!kind->async) {
		errno = hp_uffd_protect(uffd, memory, length, true);
		if (errno)
			hp_die("UFFDIO_WRITEPROTECT");
		checkpoint("protected");
	}
	protect(PROT_READ);
	checkpoint("readonly");
	protect(RIGHTS);
	checkpoint("writable");
	fork_and_write(events, !kind->async);
	return ktap_finish();
}
