// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: fork() copies the entries of a mapping that has VM_PFNMAP or VM_MIXEDMAP, whoever made it, and leaves out
 * those of shared memory that a fault can find again. A private mapping is write-protected in parent and child.
 *
 * --map=resource          BAR 2 through sysfs (resource2), while no driver has the device: VM_PFNMAP
 * --map=resource-wc       resource2_wc: the same, write-combined
 * --map=resource-private  MAP_PRIVATE of resource2: a write gets a page of its own
 * --map=packet            the ring of a packet socket: VM_MIXEDMAP
 * --map=packet-private    MAP_PRIVATE of it
 * --map=devdax            device-dax over persistent memory, with leaves of --level
 *
 * --case=life     reads, writes, two forks, mprotect() there and back. The first fork finds the second page written and the
 *     first one clean; the second fork finds all of it read-only.
 *     Checkpoints: mapped, read, written, forked, child-written, parent-written, readonly, readonly-forked,
 *     second-writable, second-written, writable, rewritten
 * --case=first    the very first page of the mapping is written before the fork. Value: fork
 * --case=revoked  vfio-pci gets the device back, and its BAR is mapped through vfio as well: "bar". Checkpoints:
 *     written, revoked. Values: parent-access, child-access
 *
 * Mappings: "memory", four pages or one leaf.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/devices.h"
#include "lib/hugepfn.h"

#define PAGES 4
#define RIGHTS (PROT_READ | PROT_WRITE)
#define DATA 0x77

enum of { RESOURCE, PACKET, DEVDAX };

static const struct map {
	const char *name;
	enum of of;
	int flags;
	const char *file; /* below the device's folder in sysfs */
} maps[] = {
	{ "resource", RESOURCE, MAP_SHARED, "resource2" },
	{ "resource-wc", RESOURCE, MAP_SHARED, "resource2_wc" },
	{ "resource-private", RESOURCE, MAP_PRIVATE, "resource2" },
	{ "packet", PACKET, MAP_SHARED, NULL },
	{ "packet-private", PACKET, MAP_PRIVATE, NULL },
	{ "devdax", DEVDAX, MAP_SHARED, NULL },
};

static const struct map *chosen;
static char *memory, *other; /* its first page, and the second one */
static char *behind;         /* the second page of what a private mapping is a copy of */
static size_t length;
static enum hp_level level;

static int packet_ring(void)
{
	struct tpacket_req ring = {
		.tp_block_size = KIB(4), .tp_block_nr = PAGES, .tp_frame_size = KIB(2), .tp_frame_nr = 2 * PAGES
	};
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (fd < 0)
		ktap_skip_all("no packet sockets in this kernel: %s", strerror(errno));
	if (setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)))
		hp_die("PACKET_RX_RING");
	return fd;
}

static int open_it(void)
{
	switch (chosen->of) {
	case RESOURCE:
		hp_device_free(2);
		return hp_device_open(chosen->file);
	case PACKET:
		return packet_ring();
	default:
		return hp_devdax_open(level);
	}
}

/* The walk is held against the BAR, or against pagemap; a private mapping of a BAR has pages of both kinds. */
static void name_memory(int prot)
{
	bool bar = chosen->of == RESOURCE && chosen->flags == MAP_SHARED;
	/* pagemap_read() takes a pud that is no pfnmap's to pieces (walk_pud_range()). */
	bool pagemap = chosen->of != RESOURCE && level != HP_PUD;

	hp_map(&(struct hp_mapping){ .name = "memory",
				     .addr = memory,
				     .length = length,
				     .prot = prot,
				     .backing = bar ? HP_BAR : HP_RAM,
				     .pagemap_pages = bar || pagemap ? length / KIB(4) : 0 });
}

static void map_it(void)
{
	size_t leaf = hp_leaf_size(level), align = leaf > MIB(2) ? leaf : MIB(2);
	int fd = open_it();

	length = level == HP_PTE ? PAGES * KIB(4) : leaf;
	memory = (char *)hp_reserve(2 * align + length, align) + align;
	if (mmap(memory, length, RIGHTS, chosen->flags | MAP_FIXED, fd, 0) == MAP_FAILED)
		hp_die("mmap of %s", chosen->name);
	name_memory(RIGHTS);
	other = memory + KIB(4);
	if (chosen->flags != MAP_PRIVATE)
		return;
	behind = mmap(NULL, length, RIGHTS, MAP_SHARED, fd, 0);
	if (behind == MAP_FAILED)
		hp_die("mmap of %s, shared", chosen->name);
	behind += KIB(4);
	hp_write(behind + 8, DATA);
}

static void protect(int prot)
{
	if (mprotect(memory, length, prot))
		hp_die("mprotect");
	name_memory(prot);
}

static _Noreturn void child_main(const struct hp_gate *go)
{
	hp_gate_wait(go);
	ktap_value("child-faults", "%ld", hp_write_faults(other, 2));
	ktap_value("child-clean-faults", "%ld", hp_write_faults(memory, 2));
	checkpoint("child-written");
	hp_gate_open(go + 1);
	hp_gate_wait(go);
	ktap_value("child-has", "%ld", (long)hp_read(other));
	ktap_value("child-copied", "%#lx", (unsigned long)hp_read(other + 8));
	_exit(0);
}

static _Noreturn void second_main(const struct hp_gate *go)
{
	hp_gate_wait(go);
	protect(RIGHTS);
	checkpoint("second-writable");
	ktap_value("second-faults", "%ld", hp_write_faults(other, 4));
	checkpoint("second-written");
	_exit(0);
}

static void first_fork(struct hp_gate *go)
{
	pid_t child = hp_fork("child");

	if (!child)
		child_main(go);
	checkpoint("forked");
	hp_gate_open(go);
	hp_gate_wait(go + 1);
	ktap_value("parent-faults", "%ld", hp_write_faults(other, 3));
	checkpoint("parent-written");
	hp_gate_open(go);
	ktap_ok(hp_reap(child) == 0, "the child wrote");
}

static void second_fork(struct hp_gate *go)
{
	pid_t second = hp_fork("second");

	if (!second)
		second_main(go);
	checkpoint("readonly-forked");
	hp_gate_open(go);
	ktap_ok(hp_reap(second) == 0, "the second child wrote");
}

static void life(void)
{
	struct hp_gate go[2];

	hp_gate_init(&go[0]);
	hp_gate_init(&go[1]);
	ktap_plan(2);
	checkpoint("mapped");
	ktap_value("read-faults", "%ld", hp_read_faults(other));
	checkpoint("read");
	ktap_value("write-faults", "%ld", hp_write_faults(other, 1));
	checkpoint("written");
	first_fork(go);
	protect(PROT_READ);
	checkpoint("readonly");
	second_fork(go);
	protect(RIGHTS);
	checkpoint("writable");
	ktap_value("again-faults", "%ld", hp_write_faults(other, 5));
	checkpoint("rewritten");
	if (behind)
		ktap_value("behind", "%ld", (long)hp_read(behind));
}

static void first(void)
{
	pid_t child;

	ktap_plan(1);
	hp_write(memory, 1);
	checkpoint("written");
	child = fork();
	if (!child)
		_exit(0);
	ktap_value("fork", "%s", child < 0 ? hp_errno_name(errno) : "done");
	ktap_ok(child < 0 || waitpid(child, NULL, 0) == child, "forked, or not");
}

static void say_access(const char *name)
{
	ktap_value(name, "%s", hp_signal_name(hp_try_read(memory, NULL).signal));
}

static void revoked(void)
{
	struct hp_gate go;
	struct hp_bar bar;
	pid_t child;

	ktap_plan(1);
	hp_write(memory, 1);
	hp_gate_init(&go);
	child = hp_fork("child");
	if (!child) {
		hp_gate_wait(&go);
		say_access("child-access");
		_exit(0);
	}
	checkpoint("written");
	hp_device_back();
	bar = hp_bar_open(2);
	hp_read(hp_bar_map(&bar, HP_PTE, RIGHTS));
	checkpoint("revoked");
	say_access("parent-access");
	hp_gate_open(&go);
	ktap_ok(hp_reap(child) == 0, "parent and child tried");
}

static const struct way {
	const char *name;
	void (*run)(void);
} ways[] = { { "life", life }, { "first", first }, { "revoked", revoked } };

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct way *way = hp_choose(&options, "case", "life", ways);

	chosen = hp_choose(&options, "map", "resource", maps);
	level = options.level;
	map_it();
	way->run();
	return ktap_finish();
}
