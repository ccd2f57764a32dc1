/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The interface of a guest program to the host that watches it.
 *
 * A program calls hp_start(), names its mappings, and calls checkpoint("name") wherever the host may look.
 * At a checkpoint the program spins in user mode until the host, which has stopped the machine and walked
 * the page tables of every registered process, writes the release word into this process's stack.
 *
 * docs/protocol.md describes the lines of the events channel.
 */
#ifndef HUGEPFN_H
#define HUGEPFN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KIB(n) ((size_t)(n) << 10)
#define MIB(n) ((size_t)(n) << 20)
#define GIB(n) ((size_t)(n) << 30)

enum hp_level { HP_PTE, HP_PMD, HP_PUD };

size_t hp_leaf_size(enum hp_level level);
const char *hp_level_name(enum hp_level level);

/* The level of that name; dies with "WHATNAME: expected one of ..." if there is none. */
enum hp_level hp_level_of(const char *what, const char *name);

/* --- the run ------------------------------------------------------------------------------------- */

struct hp_options {
	enum hp_level level; /* --level=pte|pmd|pud; pte when not given */
	int argc;            /* what is left: the program's own options */
	char **argv;
};

/*
 * First call of main(): reads the options, opens the channel, registers this process as "parent", or as what
 * hp_exec() was told, with no mapping yet.
 */
struct hp_options hp_start(int argc, char **argv);

/* The value of the program's own option --NAME=VALUE; OTHERWISE if it was not given. */
const char *hp_option(const struct hp_options *options, const char *name, const char *otherwise);

/*
 * The element of TABLE, an array of a struct with a member "const char *name", that the program's own option OPTION (a
 * string literal) names, or OTHERWISE if it was not given. If none has that name, dies with a list of the valid names.
 */
#define hp_choose(options, option, otherwise, table) \
	hp_pick("--" option "=", hp_option(options, option, otherwise), table)

/* The element of TABLE that is called GIVEN. An error message begins with WHAT. */
#define hp_pick(what, given, table) \
	(&(table)[hp_index(what, given, &(table)->name, sizeof(*(table)), sizeof(table) / sizeof(*(table)))])

/* For hp_pick(): the index of GIVEN among COUNT names, the first at NAME, and each STRIDE bytes after the one before. */
size_t hp_index(const char *what, const char *given, const char *const *name, size_t stride, size_t count);

/* fork(); the child registers under NAME before it returns, and the parent returns after that. */
pid_t hp_fork(const char *name);

/* Registers the calling process (after a raw fork, vfork or clone). */
void hp_register(const char *name);

/*
 * A process that shares the caller's memory: clone(CLONE_VM | FLAGS | SIGCHLD) on a stack of its own, which runs
 * MAIN(ARGUMENT) and has to register itself. Only one of the processes that share memory may use stdio at a time.
 */
pid_t hp_clone_vm(int flags, int (*main)(void *), void *argument);

/* Executes this program again in the calling process: the host forgets its tables, and hp_start() registers NAME. */
_Noreturn void hp_exec(const char *name, char *const argv[]);

/* Size of a process's page tables in KiB, from /proc/PID/status (VmPTE: the pte, pmd and pud tables). 0: self. */
long hp_page_table_kib(pid_t pid);

/* CPU time of the calling thread, in nanoseconds. */
uint64_t hp_cpu_time_ns(void);

/* waitpid() for a registered child, and tells the host that its tables are gone. Returns the wait status. */
int hp_reap(pid_t pid);

/* The host may look here; the process spins until the host releases it. */
void checkpoint(const char *name);

/* --- mappings ------------------------------------------------------------------------------------ */

enum hp_backing {
	HP_BAR, /* pfnmap of a PCI BAR: pagemap must be a hole, every leaf special */
	HP_RAM, /* ordinary memory: pagemap and the walk must agree */
};

struct hp_mapping {
	const char *name;
	void *addr;
	size_t length;
	int prot;                /* PROT_* */
	enum hp_backing backing;
	uint64_t file_offset;    /* bytes into the BAR; 0 for ordinary memory */
	const char *region;      /* which BAR, by its name; NULL: "bar" */
	size_t pagemap_pages;    /* how many pages the guest reads pagemap for at a checkpoint, from the start */
};

/* Declares a mapping of the calling process, or replaces the one of that name. A child forked later has it too. */
void hp_map(const struct hp_mapping *mapping);

/* Declares that the calling process no longer has it. */
void hp_unmap(const char *name);

/* An address range aligned to ALIGN with nothing in it, for MAP_FIXED. */
void *hp_reserve(size_t length, size_t align);

/* Loads or stores one word; the compiler cannot drop or merge the access. */
uint64_t hp_read(const void *addr);
void hp_write(void *addr, uint64_t value);

/*
 * Stores (loads) one word and returns how many faults it took, by the kernel's own count (getrusage, ru_minflt +
 * ru_majflt). -1: the access was given up after 10,000 faults, since it would fault for ever. For one thread at a time.
 */
long hp_write_faults(void *addr, uint64_t value);
long hp_read_faults(const void *addr);

/* How an access ended: signal 0 if it succeeded, else the signal (SIGBUS, SIGSEGV), its si_code and si_addr. */
struct hp_caught {
	int signal;
	int code;
	void *addr;
};

/* Loads or stores one word where the kernel may refuse it. VALUE may be NULL. Any thread may call it. */
struct hp_caught hp_try_read(const void *addr, uint64_t *value);
struct hp_caught hp_try_write(void *addr, uint64_t value);

/* "BUS", "SEGV"; "0" for no signal. "EINVAL"; "0" for no error. */
const char *hp_signal_name(int number);
const char *hp_errno_name(int error);

/* Writes TEXT to an existing file (/proc, /sys) in one write; returns 0 or the error number. */
int hp_write_file(const char *path, const char *text);

/* The calling process's /proc/self/pagemap word of the page at ADDR (Documentation/admin-guide/mm/pagemap.rst). */
uint64_t hp_pagemap_word(const void *addr);

/* --- gates: one process lets another continue, without sleeping ---------------------------------- */

struct hp_gate {
	int fd[2];
};

void hp_gate_init(struct hp_gate *gate);
void hp_gate_open(const struct hp_gate *gate);
void hp_gate_wait(const struct hp_gate *gate);

/* --- the device ---------------------------------------------------------------------------------- */

struct hp_bar {
	int device_fd;
	uint64_t size;   /* bytes */
	uint64_t offset; /* of the region in device_fd */
	char region[8];  /* "bar" for BAR 2, "bar0" for another */
	int container_fd; /* VFIO_TYPE1v2_IOMMU */
	int group_fd;
};

/* Opens BAR number BAR of the device bound to vfio-pci, with its memory enabled. Skips the run if there is none. */
struct hp_bar hp_bar_open(unsigned int bar);

/* Another BAR of a device that is open. Skips the run if it cannot be mapped. */
struct hp_bar hp_bar_also(const struct hp_bar *opened, unsigned int bar);

/* Sets or clears the memory bit of PCI_COMMAND through vfio's config region. */
void hp_bar_memory(const struct hp_bar *bar, bool enabled);

/*
 * Maps the BAR's first leaf of LEVEL (four pages at pte) MAP_SHARED, where such a leaf fits and no larger one,
 * and names it "bar".
 */
void *hp_bar_map(const struct hp_bar *bar, enum hp_level level, int prot);

/* Any part of a BAR, at an address of any alignment. */
struct hp_bar_area {
	const char *name; /* of the mapping; NULL: "bar" */
	uint64_t offset;  /* bytes into the BAR */
	size_t length;
	size_t align;     /* the address is a multiple of this (2 MiB if it is less), */
	size_t skew;      /* plus this */
	int prot;
	int flags;        /* beside MAP_SHARED and MAP_FIXED: MAP_POPULATE, ... */
};

/* Maps and names it. The 2 MiB on either side are left free, so that no neighbour merges with it. */
void *hp_bar_map_area(const struct hp_bar *bar, const struct hp_bar_area *area);

/* Declares again where a part of the BAR is mapped, and with which rights: after mprotect, mremap, munmap. */
void hp_bar_name(const char *name, void *addr, size_t length, int prot, uint64_t offset);

/* --- results: KTAP on stdout --------------------------------------------------------------------- */

void ktap_plan(unsigned int tests);
bool ktap_ok(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ktap_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* One measured value, "# value NAME=...": result.values["NAME"] on the host. NAME has no blank and no "=". */
void ktap_value(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A precondition is not met: skips the whole run, with the reason. Does not return. */
_Noreturn void ktap_skip_all(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The program itself failed; the message ends with errno. Does not return. */
_Noreturn void hp_die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Last call of main(): 0 when every planned test was reported and ok, else 1. */
int ktap_finish(void);

#endif
