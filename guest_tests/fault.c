// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: the first access to a pfnmap faults in the whole leaf with the VMA's rights, young and clean; a write sets
 * the dirty bit and nothing else, by the CPU, without a fault; an access that the VMA forbids changes nothing.
 *
 * --case=read         mapped, read, read-again
 * --case=write        mapped, written
 * --case=read-write   mapped, read, written
 * --case=readonly     read, refused (a VMA without PROT_WRITE)
 * --case=memory-off   refused, touched (the device's memory is off, then on again)
 * --case=sticky       small, same-table, other-table, again (page tables exist already, so only smaller leaves fit)
 */
#include <stdio.h>
#include <sys/mman.h>

#include "lib/hugepfn.h"

static char *map(const struct hp_bar *bar, enum hp_level level, int prot)
{
	char *mapped = hp_bar_map(bar, level, prot);

	checkpoint("mapped");
	return mapped;
}

static void say_caught(const char *who, struct hp_caught caught, const char *mapped)
{
	char name[64];

	snprintf(name, sizeof(name), "%s-signal", who);
	ktap_value(name, "%s", hp_signal_name(caught.signal));
	snprintf(name, sizeof(name), "%s-code", who);
	ktap_value(name, "%d", caught.code);
	snprintf(name, sizeof(name), "%s-offset", who);
	ktap_value(name, "%td", (char *)caught.addr - mapped);
}

static void touch(const struct hp_bar *bar, enum hp_level level, bool read, bool write)
{
	char *mapped = map(bar, level, PROT_READ | PROT_WRITE);

	if (read) {
		ktap_value("read-faults", "%ld", hp_read_faults(mapped));
		checkpoint("read");
	}
	if (write) {
		ktap_value("write-faults", "%ld", hp_write_faults(mapped + 8, 1));
		checkpoint("written");
	} else {
		ktap_value("again-faults", "%ld", hp_read_faults(mapped + 16));
		checkpoint("read-again");
	}
	ktap_ok(true, "touched");
}

static void touch_read(const struct hp_bar *bar, enum hp_level level)
{
	touch(bar, level, true, false);
}

static void touch_write(const struct hp_bar *bar, enum hp_level level)
{
	touch(bar, level, false, true);
}

static void touch_both(const struct hp_bar *bar, enum hp_level level)
{
	touch(bar, level, true, true);
}

static void readonly(const struct hp_bar *bar, enum hp_level level)
{
	char *mapped = map(bar, level, PROT_READ);

	ktap_value("read-faults", "%ld", hp_read_faults(mapped));
	checkpoint("read");
	say_caught("write", hp_try_write(mapped + 8, 1), mapped);
	checkpoint("refused");
	ktap_value("again-faults", "%ld", hp_read_faults(mapped + 16));
	ktap_ok(true, "read, and was refused a write");
}

static void memory_off(const struct hp_bar *bar, enum hp_level level)
{
	char *mapped = map(bar, level, PROT_READ | PROT_WRITE);

	hp_bar_memory(bar, false);
	say_caught("read", hp_try_read(mapped, NULL), mapped);
	say_caught("write", hp_try_write(mapped + 8, 1), mapped);
	checkpoint("refused");
	hp_bar_memory(bar, true);
	ktap_value("read-faults", "%ld", hp_read_faults(mapped));
	checkpoint("touched");
	ktap_ok(true, "refused while the memory was off");
}

/*
 * One page is touched while the VMA may have no huge leaves; then they are allowed again. At pud, a page of the same
 * pmd and one of another pmd are touched next. Then everything is zapped, which leaves the page tables.
 */
static void sticky(const struct hp_bar *bar, enum hp_level level)
{
	size_t length = hp_leaf_size(level);
	char *mapped = map(bar, level, PROT_READ | PROT_WRITE);

	if (madvise(mapped, length, MADV_NOHUGEPAGE))
		hp_die("MADV_NOHUGEPAGE");
	hp_read(mapped);
	checkpoint("small");
	if (madvise(mapped, length, MADV_HUGEPAGE))
		hp_die("MADV_HUGEPAGE");
	hp_read(mapped + KIB(8));
	checkpoint("same-table");
	if (level == HP_PUD)
		hp_read(mapped + MIB(4) + KIB(12));
	checkpoint("other-table");
	hp_bar_memory(bar, false);
	hp_bar_memory(bar, true);
	checkpoint("zapped");
	hp_read(mapped);
	if (level == HP_PUD)
		hp_read(mapped + MIB(4));
	checkpoint("again");
	ktap_ok(true, "touched small, then large");
}

static const struct fault {
	const char *name;
	void (*run)(const struct hp_bar *bar, enum hp_level level);
} cases[] = {
	{ "read", touch_read },
	{ "write", touch_write },
	{ "read-write", touch_both },
	{ "readonly", readonly },
	{ "memory-off", memory_off },
	{ "sticky", sticky },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct fault *chosen = hp_choose(&options, "case", "", cases);
	struct hp_bar bar = hp_bar_open(2);

	ktap_plan(1);
	chosen->run(&bar, options.level);
	return ktap_finish();
}
