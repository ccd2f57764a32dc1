// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: what the device loses, every process loses at once. While its memory is off (or it is reset, or asleep),
 * no process has an entry for it and an access gets SIGBUS; afterwards an access faults in a fresh entry, at the same
 * place, with none of the old entry's bits.
 *
 * One case per run, --case=NAME. The comment of each function below lists its checkpoints.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"

/* include/uapi/linux/vfio.h of 6.1, for headers that are older */
#ifndef VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY
#define VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY 3
#define VFIO_DEVICE_FEATURE_LOW_POWER_EXIT 5
#endif

static const int rw = PROT_READ | PROT_WRITE;
static struct hp_gate to_child, to_parent;
static enum hp_level top; /* the highest level that the kernel makes, --top */

/* The length that hp_bar_map() maps. */
static size_t mapped_length(enum hp_level level)
{
	return level == HP_PTE ? 4 * hp_leaf_size(HP_PTE) : hp_leaf_size(level);
}

static void tell_caught(const char *who, const char *what, struct hp_caught caught, const void *addr)
{
	char name[64];

	snprintf(name, sizeof(name), "%s-%s", who, what);
	if (caught.signal)
		ktap_value(name, "%s code %d at %s", hp_signal_name(caught.signal), caught.code,
			   caught.addr == addr ? "the address" : "another address");
	else
		ktap_value(name, "made");
}

/* Reads and writes where the device may be gone, and reports how each ended: WHO-read, WHO-write. */
static void tell_accesses(const char *who, void *addr)
{
	tell_caught(who, "read", hp_try_read(addr, NULL), addr);
	tell_caught(who, "write", hp_try_write(addr, 1), addr);
}

/* --- memory off and on ---------------------------------------------------------------------------- */

/* A word that is not the first of its page: si_addr is exact. */
#define WORD 9

/* held (child), off, refused (child), on, read (parent), written (child) */
static int memory(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	pid_t child;

	hp_write(mapped, 1);
	child = hp_fork("child");
	if (!child) {
		hp_write(mapped, 2);
		checkpoint("held");
		hp_gate_open(&to_parent);
		hp_gate_wait(&to_child);
		tell_accesses("child", mapped + WORD);
		checkpoint("refused");
		hp_gate_open(&to_parent);
		hp_gate_wait(&to_child);
		ktap_value("child-faults-on", "%ld", hp_write_faults(mapped, 3));
		checkpoint("written");
		_exit(0);
	}
	hp_gate_wait(&to_parent);
	hp_bar_memory(&bar, false);
	checkpoint("off");
	tell_accesses("parent", mapped + WORD);
	hp_gate_open(&to_child);
	hp_gate_wait(&to_parent);
	hp_bar_memory(&bar, true);
	checkpoint("on");
	hp_read(mapped);
	checkpoint("read");
	hp_gate_open(&to_child);
	return hp_reap(child);
}

/* readonly, read, writable: a dirty leaf set read-only, revoked, and made again; then writable again */
static int readonly(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	size_t length = mapped_length(level);

	hp_write(mapped, 1);
	if (mprotect(mapped, length, PROT_READ))
		hp_die("mprotect");
	hp_bar_name("bar", mapped, length, PROT_READ, 0);
	checkpoint("readonly");
	hp_bar_memory(&bar, false);
	hp_bar_memory(&bar, true);
	hp_read(mapped);
	checkpoint("read");
	tell_caught("readonly", "write", hp_try_write(mapped, 2), mapped);
	if (mprotect(mapped, length, rw))
		hp_die("mprotect");
	hp_bar_name("bar", mapped, length, rw, 0);
	checkpoint("writable");
	return 0;
}

/* off (child), child-on (child), on, later: forked while the memory is off, and the child turns it on */
static int fork_off(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	pid_t child, later;

	hp_write(mapped, 1);
	hp_bar_memory(&bar, false);
	child = hp_fork("child");
	if (!child) {
		tell_accesses("child", mapped);
		checkpoint("off");
		hp_bar_memory(&bar, true);
		hp_read(mapped);
		checkpoint("child-on");
		_exit(0);
	}
	if (hp_reap(child))
		return 1;
	hp_write(mapped, 1);
	later = hp_fork("later");
	if (!later) {
		checkpoint("later");
		_exit(0);
	}
	return hp_reap(later);
}

static _Noreturn void hold_until_told(uint64_t *mapped, uint64_t *low)
{
	hp_write(mapped, 2);
	hp_write(low, 2);
	hp_gate_open(&to_parent);
	hp_gate_wait(&to_child);
	_exit(0);
}

/* held, off, on: four processes, each with the leaf ("bar") and with 4K entries of the same memory ("low") */
static int many(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	uint64_t *low = hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = "low", .length = KIB(16), .prot = rw });
	pid_t child, sibling;

	hp_write(mapped, 1);
	hp_write(low, 1);
	child = hp_fork("child");
	if (!child) {
		pid_t grandchild = hp_fork("grandchild");

		if (!grandchild)
			hold_until_told(mapped, low);
		hp_write(mapped, 2);
		hp_write(low, 2);
		hp_gate_open(&to_parent);
		_exit(hp_reap(grandchild) ? 1 : 0);
	}
	sibling = hp_fork("sibling");
	if (!sibling)
		hold_until_told(mapped, low);
	for (int i = 0; i < 3; i++)
		hp_gate_wait(&to_parent);
	checkpoint("held");
	hp_bar_memory(&bar, false);
	checkpoint("off");
	hp_bar_memory(&bar, true);
	hp_write(mapped, 1);
	hp_read(low);
	checkpoint("on");
	hp_gate_open(&to_child);
	hp_gate_open(&to_child);
	return hp_reap(sibling) || hp_reap(child);
}

/* small, off, again: where 4K entries were, revocation leaves the page table, and no larger leaf fits over it */
static int tables(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	size_t length = mapped_length(level);

	if (madvise(mapped, length, MADV_NOHUGEPAGE))
		hp_die("MADV_NOHUGEPAGE");
	hp_write(mapped, 1);
	checkpoint("small");
	if (madvise(mapped, length, MADV_HUGEPAGE))
		ktap_skip_all("MADV_HUGEPAGE: %s", hp_errno_name(errno));
	hp_bar_memory(&bar, false);
	checkpoint("off");
	hp_bar_memory(&bar, true);
	hp_read(mapped);
	hp_read((char *)mapped + length - 8);
	checkpoint("again");
	return 0;
}

/* --- two BARs, two views -------------------------------------------------------------------------- */

/* both (child), off, refused (child), on: BAR 0 ("registers") beside BAR 2 */
static int bars(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2), registers = hp_bar_also(&bar, 0);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	uint64_t *page = hp_bar_map_area(
		&registers, &(struct hp_bar_area){ .name = "registers", .length = registers.size, .prot = rw });
	pid_t child;

	hp_read(page);
	hp_write(mapped, 1);
	child = hp_fork("child");
	if (!child) {
		hp_write(page, 0);
		hp_read(mapped);
		checkpoint("both");
		hp_gate_open(&to_parent);
		hp_gate_wait(&to_child);
		tell_accesses("child", mapped);
		tell_accesses("child-registers", page);
		checkpoint("refused");
		_exit(0);
	}
	hp_gate_wait(&to_parent);
	hp_bar_memory(&bar, false);
	checkpoint("off");
	hp_gate_open(&to_child);
	if (hp_reap(child))
		return 1;
	hp_bar_memory(&bar, true);
	hp_read(page);
	hp_read(mapped);
	checkpoint("on");
	return 0;
}

/* written, read, alone: the same memory in one process as a leaf ("bar") and as 4K entries ("low") */
static int twice(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	uint64_t *low = hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = "low", .length = KIB(16), .prot = rw });

	hp_write(mapped, 1);
	checkpoint("written");
	hp_read(low);
	checkpoint("read");
	if (munmap(low, KIB(16)))
		hp_die("munmap");
	hp_unmap("low");
	checkpoint("alone");
	return 0;
}

/* One view of the BAR's first bytes, by entries of LEVEL: named "as-pte", ... */
static uint64_t *view(const struct hp_bar *bar, enum hp_level level)
{
	char name[16];

	snprintf(name, sizeof(name), "as-%s", hp_level_name(level));
	return hp_bar_map_area(bar, &(struct hp_bar_area){ .name = name,
							   .length = mapped_length(level),
							   .align = hp_leaf_size(level),
							   .prot = rw });
}

/* The first word of each of the first four pages: what every view can reach. */
static void fill(uint64_t *from, uint64_t seed)
{
	for (int page = 0; page < 4; page++)
		hp_write(from + 512 * page, seed + (uint64_t)page);
}

static void tell_seen(const char *who, const uint64_t *from)
{
	char name[32];

	snprintf(name, sizeof(name), "%s-saw", who);
	ktap_value(name, "%llx %llx %llx %llx", (unsigned long long)hp_read(from),
		   (unsigned long long)hp_read(from + 512), (unsigned long long)hp_read(from + 1024),
		   (unsigned long long)hp_read(from + 1536));
}

/* written, child-written (child), read: RAM behind the BAR, seen through every level up to TOP */
static int data(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *as[HP_PUD + 1];
	pid_t child;

	for (enum hp_level each = HP_PTE; each <= top; each++)
		as[each] = view(&bar, each);
	fill(as[level], 0x1000);
	checkpoint("written");
	for (enum hp_level each = HP_PTE; each <= top; each++)
		tell_seen(hp_level_name(each), as[each]);
	child = hp_fork("child");
	if (!child) {
		tell_seen("child", as[level]);
		fill(as[level], 0x2000);
		checkpoint("child-written");
		_exit(0);
	}
	if (hp_reap(child))
		return 1;
	for (enum hp_level each = HP_PTE; each <= top; each++) {
		char name[16];

		snprintf(name, sizeof(name), "then-%s", hp_level_name(each));
		tell_seen(name, as[each]);
	}
	hp_bar_memory(&bar, false);
	hp_bar_memory(&bar, true);
	tell_seen("revoked", as[level]);
	checkpoint("read");
	return 0;
}

/* --- the device's file ---------------------------------------------------------------------------- */

static int open_group(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", getenv("HUGEPFN_VFIO_GROUP"));
	return open(path, O_RDWR | O_CLOEXEC);
}

/* written, closed, touched, unmapped, reopened: every descriptor of the device is closed while it is mapped */
static int closed(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	/* Two leaves with a mapping each: a fault of 6.1 fills a whole VMA, and one leaf must be left to fault in. */
	size_t length = mapped_length(level);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	uint64_t *second = hp_bar_map_area(&bar, &(struct hp_bar_area){ .name = "second",
									.offset = length,
									.length = length,
									.align = hp_leaf_size(level),
									.prot = rw });
	int group;

	hp_write(mapped, 1);
	checkpoint("written");
	if (close(bar.device_fd) || close(bar.group_fd) || close(bar.container_fd))
		hp_die("close");
	checkpoint("closed");
	hp_write(second, 1);
	hp_write(mapped, 2);
	checkpoint("touched");
	group = open_group();
	ktap_value("open-while-mapped", "%s", hp_errno_name(group < 0 ? errno : 0));
	if (munmap(mapped, length))
		hp_die("munmap");
	hp_unmap("bar");
	group = open_group();
	ktap_value("open-half-mapped", "%s", hp_errno_name(group < 0 ? errno : 0));
	if (munmap(second, length))
		hp_die("munmap");
	hp_unmap("second");
	checkpoint("unmapped");
	bar = hp_bar_open(2);
	hp_read(hp_bar_map(&bar, level, rw));
	checkpoint("reopened");
	return 0;
}

/* Duplicates a descriptor of another process, by its number there: a small kernel may have no sockets. */
static int take_fd(pid_t from, int fd)
{
	int pidfd = (int)syscall(SYS_pidfd_open, from, 0), taken = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	if (taken < 0)
		hp_die("pidfd_getfd");
	close(pidfd);
	return taken;
}

/* both (other), off, back (other): two processes that are not copies of each other map one device */
static int passed(enum hp_level level)
{
	struct hp_bar bar;
	uint64_t *mapped;
	int ends[2], group, number;
	pid_t other;

	if (pipe(ends))
		hp_die("pipe");
	other = hp_fork("other");
	if (!other) {
		hp_gate_wait(&to_child);
		group = open_group();
		ktap_value("second-open", "%s", hp_errno_name(group < 0 ? errno : 0));
		if (read(ends[0], &number, sizeof(number)) != sizeof(number))
			hp_die("read of a descriptor's number");
		bar.device_fd = take_fd(getppid(), number);
		bar = hp_bar_also(&bar, 2);
		mapped = hp_bar_map(&bar, level, rw);
		hp_write(mapped, 2);
		checkpoint("both");
		hp_gate_open(&to_parent);
		hp_gate_wait(&to_child);
		tell_accesses("other", mapped);
		hp_bar_memory(&bar, true);
		hp_read(mapped);
		checkpoint("back");
		_exit(0);
	}
	bar = hp_bar_open(2);
	mapped = hp_bar_map(&bar, level, rw);
	hp_read(mapped);
	hp_gate_open(&to_child);
	if (write(ends[1], &bar.device_fd, sizeof(bar.device_fd)) != sizeof(bar.device_fd))
		hp_die("write of a descriptor's number");
	hp_gate_wait(&to_parent);
	hp_bar_memory(&bar, false);
	checkpoint("off");
	hp_gate_open(&to_child);
	return hp_reap(other);
}

/* --- reset and power ------------------------------------------------------------------------------ */

static uint32_t device_flags(int device_fd)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };

	if (ioctl(device_fd, VFIO_DEVICE_GET_INFO, &info))
		hp_die("VFIO_DEVICE_GET_INFO");
	return info.flags;
}

/* written, refused: a device that can be reset neither alone nor with its bus */
static int no_reset(enum hp_level level)
{
	struct vfio_pci_hot_reset_info info = { .argsz = sizeof(info) };
	_Alignas(struct vfio_pci_hot_reset) char room[sizeof(struct vfio_pci_hot_reset) + sizeof(int32_t)] = { 0 };
	struct vfio_pci_hot_reset *reset = (struct vfio_pci_hot_reset *)room;
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);

	if (device_flags(bar.device_fd) & VFIO_DEVICE_FLAGS_RESET)
		ktap_skip_all("this device can be reset");
	hp_write(mapped, 1);
	checkpoint("written");
	ktap_value("reset", "%s", hp_errno_name(ioctl(bar.device_fd, VFIO_DEVICE_RESET) ? errno : 0));
	ktap_value("hot-reset-info", "%s",
		   hp_errno_name(ioctl(bar.device_fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info) ? errno : 0));
	reset->argsz = sizeof(room);
	reset->count = 1;
	reset->group_fds[0] = bar.group_fd;
	ktap_value("hot-reset", "%s",
		   hp_errno_name(ioctl(bar.device_fd, VFIO_DEVICE_PCI_HOT_RESET, reset) ? errno : 0));
	checkpoint("refused");
	return 0;
}

static int low_power_feature(const struct hp_bar *bar, uint32_t feature)
{
	struct vfio_device_feature arg = { .argsz = sizeof(arg), .flags = VFIO_DEVICE_FEATURE_SET | feature };

	return ioctl(bar->device_fd, VFIO_DEVICE_FEATURE, &arg) ? errno : 0;
}

/* written (child), asleep, refused (child), awake, read: the kernel's runtime power management, by request */
static int low_power(enum hp_level level)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, level, rw);
	pid_t child;
	int error;

	hp_write(mapped, 1);
	child = hp_fork("child");
	if (!child) {
		hp_write(mapped, 2);
		checkpoint("written");
		hp_gate_open(&to_parent);
		hp_gate_wait(&to_child);
		tell_accesses("child", mapped);
		checkpoint("refused");
		_exit(0);
	}
	hp_gate_wait(&to_parent);
	error = low_power_feature(&bar, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY);
	if (error)
		ktap_skip_all("vfio-pci has no low power entry: %s", hp_errno_name(error));
	checkpoint("asleep");
	tell_accesses("parent", mapped);
	hp_gate_open(&to_child);
	if (hp_reap(child))
		return 1;
	error = low_power_feature(&bar, VFIO_DEVICE_FEATURE_LOW_POWER_EXIT);
	if (error)
		hp_die("low power exit: %s", hp_errno_name(error));
	checkpoint("awake");
	hp_read(mapped);
	checkpoint("read");
	return 0;
}

/* The offset of a capability in the configuration space, 0 if the device does not have it. */
static uint8_t find_capability(int device_fd, uint64_t config, uint8_t wanted)
{
	uint8_t where = 0, word[2];

	if (pread(device_fd, &where, 1, (off_t)config + PCI_CAPABILITY_LIST) != 1)
		hp_die("read of the configuration space");
	while (where) {
		if (pread(device_fd, word, 2, (off_t)config + where) != 2)
			hp_die("read of the capability at %#x", where);
		if (word[0] == wanted)
			return where;
		where = word[1];
	}
	return 0;
}

/* D0 or D3hot, through the power management capability. */
static void set_power_state(const struct hp_bar *bar, uint16_t state)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	uint16_t control;
	off_t where;
	uint8_t found;

	if (ioctl(bar->device_fd, VFIO_DEVICE_GET_REGION_INFO, &info))
		hp_die("VFIO_DEVICE_GET_REGION_INFO");
	found = find_capability(bar->device_fd, info.offset, PCI_CAP_ID_PM);
	if (!found)
		ktap_skip_all("the device has no power management capability");
	where = (off_t)info.offset + found + PCI_PM_CTRL;
	if (pread(bar->device_fd, &control, 2, where) != 2)
		hp_die("read of the power state");
	control = (uint16_t)((control & ~PCI_PM_CTRL_STATE_MASK) | state);
	if (pwrite(bar->device_fd, &control, 2, where) != 2)
		hp_die("write of the power state");
}

static void lose(const struct hp_bar *bar, bool reset)
{
	if (!reset)
		set_power_state(bar, 3);
	else if (ioctl(bar->device_fd, VFIO_DEVICE_RESET))
		hp_die("VFIO_DEVICE_RESET");
}

/*
 * written (child), lost, back: views by every level up to TOP, in parent and child. A reset is over when it returns,
 * and the device is as it was; D3hot lasts until D0 is written, and until then an access is refused.
 */
static int reset_or_sleep(bool reset)
{
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *as[HP_PUD + 1];
	pid_t child;

	if (reset && !(device_flags(bar.device_fd) & VFIO_DEVICE_FLAGS_RESET))
		ktap_skip_all("the device has no reset of its own");
	for (enum hp_level each = HP_PTE; each <= top; each++) {
		as[each] = view(&bar, each);
		hp_write(as[each], 1);
	}
	child = hp_fork("child");
	if (!child) {
		for (enum hp_level each = HP_PTE; each <= top; each++)
			hp_write(as[each], 2);
		checkpoint("written");
		hp_gate_open(&to_parent);
		hp_gate_wait(&to_child);
		tell_accesses("child", as[top]);
		_exit(0);
	}
	hp_gate_wait(&to_parent);
	lose(&bar, reset);
	checkpoint("lost");
	for (enum hp_level each = HP_PTE; each <= top; each++)
		if (!reset)
			tell_accesses(hp_level_name(each), as[each]);
	hp_gate_open(&to_child);
	if (hp_reap(child))
		return 1;
	if (!reset)
		set_power_state(&bar, 0);
	for (enum hp_level each = HP_PTE; each <= top; each++)
		hp_read(as[each]);
	checkpoint("back");
	return 0;
}

static int run_reset(enum hp_level level)
{
	(void)level;
	return reset_or_sleep(true);
}

static int run_sleep(enum hp_level level)
{
	(void)level;
	return reset_or_sleep(false);
}

static const struct device {
	const char *name;
	int (*run)(enum hp_level level);
} cases[] = {
	{ "memory", memory },
	{ "readonly", readonly },
	{ "fork-off", fork_off },
	{ "many", many },
	{ "tables", tables },
	{ "bars", bars },
	{ "data", data },
	{ "twice", twice },
	{ "closed", closed },
	{ "passed", passed },
	{ "no-reset", no_reset },
	{ "low-power", low_power },
	{ "reset", run_reset },
	{ "sleep", run_sleep },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct device *chosen = hp_choose(&options, "case", "memory", cases);
	bool fine;

	top = hp_level_of("--top=", hp_option(&options, "top", "pte"));
	hp_gate_init(&to_child);
	hp_gate_init(&to_parent);
	fine = !chosen->run(options.level);
	ktap_plan(1); /* not before: in the middle of a case a precondition may turn out not to be met */
	ktap_ok(fine, "%s", chosen->name);
	return ktap_finish();
}
