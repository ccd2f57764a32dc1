// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: a pfnmap has no pages to track, so page tracking leaves its entries alone, and a write to it always
 * completes.
 *
 * "control" is a page of ordinary memory, which shows that what is done to the BAR works there.
 *
 * --case=referenced: clear_refs 1, 2, 3. Checkpoints: before, all, anon, file.
 * --case=soft-dirty: clear_refs 4, then a write. Checkpoints: before, cleaned, rewritten.
 * --case=soft-dirty-first: clear_refs 4 before the first access. Checkpoints: read, written.
 * --case=soft-dirty-mprotect: clear_refs 4, then mprotect to PROT_READ and back. Checkpoints: back, written.
 * --case=scan: PAGEMAP_SCAN, with and without write-protecting. Checkpoints: before, after.
 * --case=uffd: registration for WP, MISSING, MINOR. Checkpoints: before, after.
 * --case=uffd-async: registration for asynchronous WP. Checkpoints: before, after.
 * --case=uffd-protect: where asynchronous WP is allowed: protection, a write, at pte also one to a page that was not
 *                    mapped. Checkpoints: before, protected, written, hole-written (pte).
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"
#include "lib/tracking.h"

static size_t length;

static uint64_t *map_control(void)
{
	uint64_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		hp_die("mmap");
	hp_map(&(struct hp_mapping){ .name = "control",
				     .addr = page,
				     .length = 4096,
				     .prot = PROT_READ | PROT_WRITE,
				     .backing = HP_RAM,
				     .pagemap_pages = 1 });
	hp_write(page, 1);
	return page;
}

/* A child that writes its own entries, and stays until the gate opens. */
static pid_t fork_writer(uint64_t *mapped, const struct hp_gate *end)
{
	struct hp_gate written;
	pid_t child;

	hp_gate_init(&written);
	child = hp_fork("child");
	if (!child) {
		hp_write(mapped, 2);
		hp_gate_open(&written);
		hp_gate_wait(end);
		_exit(0);
	}
	hp_gate_wait(&written);
	return child;
}

static void referenced(uint64_t *mapped)
{
	struct hp_gate end;
	pid_t child;

	map_control();
	ktap_plan(1);
	hp_write(mapped, 1);
	hp_gate_init(&end);
	child = fork_writer(mapped, &end);
	checkpoint("before");
	hp_clear_refs(getpid(), "1");
	checkpoint("all");
	hp_clear_refs(getpid(), "2");
	checkpoint("anon");
	hp_clear_refs(getpid(), "3");
	checkpoint("file");
	hp_gate_open(&end);
	ktap_ok(hp_reap(child) == 0, "clear_refs 1, 2 and 3 were accepted");
}

static void soft_dirty(uint64_t *mapped)
{
	uint64_t *control = map_control();
	struct hp_gate end;
	pid_t child;

	ktap_plan(1);
	hp_write(mapped, 1);
	hp_gate_init(&end);
	child = fork_writer(mapped, &end);
	checkpoint("before");
	hp_clear_refs(getpid(), "4");
	checkpoint("cleaned");
	hp_write(control, 2);
	ktap_value("write-faults", "%ld", hp_write_faults(mapped, 3));
	checkpoint("rewritten");
	hp_gate_open(&end);
	ktap_ok(hp_reap(child) == 0, "written after clear_refs 4");
}

static void soft_dirty_first(uint64_t *mapped)
{
	ktap_plan(1);
	hp_clear_refs(getpid(), "4");
	hp_read(mapped);
	checkpoint("read");
	ktap_value("write-faults", "%ld", hp_write_faults(mapped, 1));
	checkpoint("written");
	ktap_ok(true, "written");
}

static void soft_dirty_mprotect(uint64_t *mapped)
{
	ktap_plan(1);
	hp_write(mapped, 1);
	hp_clear_refs(getpid(), "4");
	if (mprotect(mapped, length, PROT_READ) || mprotect(mapped, length, PROT_READ | PROT_WRITE))
		hp_die("mprotect");
	checkpoint("back");
	ktap_value("write-faults", "%ld", hp_write_faults(mapped, 2));
	checkpoint("written");
	ktap_ok(true, "written");
}

static void scan(uint64_t *mapped)
{
	uint64_t *control = map_control();

	ktap_plan(1);
	hp_write(mapped, 1);
	checkpoint("before");
	hp_say_scan("all", mapped, length, 0, 0);
	hp_say_scan("present", mapped, length, 0, HP_PAGE_PRESENT);
	hp_say_scan("protect", mapped, length, HP_SCAN_WP_MATCHING, 0);
	hp_say_scan("check", mapped, length, HP_SCAN_CHECK_WPASYNC, 0);
	hp_say_scan("control", control, 4096, 0, HP_PAGE_PRESENT);
	checkpoint("after");
	ktap_ok(true, "scanned");
}

/* A userfaultfd that tracks writes by itself, as PAGEMAP_SCAN needs (since 6.7); a negative error number on failure. */
static int open_async(void)
{
	return hp_uffd_open(HP_UFFD_FEATURE_WP_ASYNC | HP_UFFD_FEATURE_WP_UNPOPULATED);
}

static void uffd(uint64_t *mapped)
{
	uint64_t *control = map_control();
	int fd = hp_uffd_open(0);

	if (fd < 0)
		ktap_skip_all("userfaultfd: %s", hp_errno_name(-fd));
	ktap_plan(1);
	hp_write(mapped, 1);
	checkpoint("before");
	ktap_value("wp", "%s", hp_errno_name(hp_uffd_register(fd, mapped, length, UFFDIO_REGISTER_MODE_WP)));
	ktap_value("missing", "%s", hp_errno_name(hp_uffd_register(fd, mapped, length, UFFDIO_REGISTER_MODE_MISSING)));
	ktap_value("minor", "%s", hp_errno_name(hp_uffd_register(fd, mapped, length, UFFDIO_REGISTER_MODE_MINOR)));
	ktap_value("control", "%s", hp_errno_name(hp_uffd_register(fd, control, 4096, UFFDIO_REGISTER_MODE_WP)));
	hp_write(mapped, 2);
	checkpoint("after");
	ktap_ok(true, "registration was tried");
}

/* The descriptor stays open: where a registration was accepted, undoing it would be a change. */
static void uffd_async(uint64_t *mapped)
{
	uint64_t *control = map_control();
	int fd = open_async();

	if (fd < 0)
		ktap_skip_all("userfaultfd with WP_ASYNC: %s", hp_errno_name(-fd));
	ktap_plan(1);
	hp_write(mapped, 1);
	checkpoint("before");
	ktap_value("wp", "%s", hp_errno_name(hp_uffd_register(fd, mapped, length, UFFDIO_REGISTER_MODE_WP)));
	ktap_value("control", "%s", hp_errno_name(hp_uffd_register(fd, control, 4096, UFFDIO_REGISTER_MODE_WP)));
	hp_write(mapped, 2);
	checkpoint("after");
	ktap_ok(true, "registration was tried");
}

static void uffd_protect(uint64_t *mapped)
{
	int fd = open_async(), error;

	if (fd < 0)
		ktap_skip_all("userfaultfd with WP_ASYNC: %s", hp_errno_name(-fd));
	hp_write(mapped, 1);
	error = hp_uffd_register(fd, mapped, length, UFFDIO_REGISTER_MODE_WP);
	if (error)
		ktap_skip_all("UFFDIO_REGISTER of a pfnmap: %s, as it should be", hp_errno_name(error));
	ktap_plan(1);
	checkpoint("before");
	errno = hp_uffd_protect(fd, mapped, length, true);
	if (errno)
		hp_die("UFFDIO_WRITEPROTECT");
	checkpoint("protected");
	ktap_value("write-faults", "%ld", hp_write_faults(mapped, 2));
	checkpoint("written");
	if (length < MIB(2)) {
		ktap_value("hole-write-faults", "%ld", hp_write_faults((char *)mapped + 4096, 3));
		checkpoint("hole-written");
	}
	ktap_ok(true, "written");
}

static const struct dirty {
	const char *name;
	void (*run)(uint64_t *mapped);
} cases[] = {
	{ "referenced", referenced },
	{ "soft-dirty", soft_dirty },
	{ "soft-dirty-first", soft_dirty_first },
	{ "soft-dirty-mprotect", soft_dirty_mprotect },
	{ "scan", scan },
	{ "uffd", uffd },
	{ "uffd-async", uffd_async },
	{ "uffd-protect", uffd_protect },
};

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct dirty *chosen = hp_choose(&options, "case", "", cases);
	struct hp_bar bar = hp_bar_open(2);
	uint64_t *mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);

	length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level);
	chosen->run(mapped);
	return ktap_finish();
}
