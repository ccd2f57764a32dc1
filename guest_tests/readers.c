// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invariant: whoever reads a process's memory or asks about it gets nothing out of a pfnmap, which has no pages, and
 * leaves its entries as they were, in parent and child.
 *
 * --case=NAME selects the reader (see the table at the end). Both parent and child have written their leaf; the reader
 * is the parent. Each reports what it got, and what it got from ordinary memory ("control").
 * With --untouched=1 the mapping is untouched, and there is no child.
 *
 * Checkpoints: before, after, again (the parent has written once more).
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/loop.h>
#include <linux/mempolicy.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/hugepfn.h"

#define CONTROL_VALUE 0x636f6e74726f6cul
#define IOVA MIB(4096)

static struct hp_bar bar;
static uint64_t *mapped, *control;
static size_t length;
static pid_t child;

/* The result of a call that returns a count or 0: "ok", or the name of its error. */
static void say(const char *name, long done)
{
	ktap_value(name, "%s", done < 0 ? hp_errno_name(errno) : "ok");
}

/* Checks that a call that succeeded did read. */
static void check_control(uint64_t word)
{
	errno = 0;
	if (word != CONTROL_VALUE)
		hp_die("the child's control word reads %" PRIx64, word);
}

/* The whole text of a file of /proc; the caller must not free it. */
static const char *slurp(const char *path)
{
	static char text[1 << 18];
	size_t length = 0;
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	while ((n = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)n;
	if (n < 0)
		hp_die("read of %s", path);
	close(fd);
	text[length] = 0;
	return text;
}

/* The line of smaps or numa_maps that begins with the mapping's address. */
static const char *find_vma(const char *text, const void *addr)
{
	char start[32];
	size_t width = (size_t)snprintf(start, sizeof(start), "%" PRIxPTR, (uintptr_t)addr);

	while (text && strncmp(text, start, width)) {
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	if (!text)
		hp_die("no line that begins with %s", start);
	return text;
}

/* "Rss:  4 kB" and the like, in one VMA's part of smaps, without the blanks around it. */
static void say_field(const char *name, const char *vma, const char *key)
{
	const char *at = strstr(vma, key);
	int width;

	if (!at)
		hp_die("no %s", key);
	at += strlen(key);
	at += strspn(at, " ");
	for (width = (int)strcspn(at, "\n"); width && at[width - 1] == ' '; width--)
		;
	ktap_value(name, "%.*s", width, at);
}

static void read_pagemap(void)
{
	size_t pages = (length < MIB(2) ? length : MIB(2)) / 4096, present = 0;

	for (size_t i = 0; i < pages; i++)
		present += (hp_pagemap_word((char *)mapped + i * 4096) & ~(1ul << 55)) != 0;
	ktap_value("pages", "%zu", present);
	ktap_value("control", "%s", hp_pagemap_word(control) >> 63 ? "ok" : "not present");
}

static void read_smaps(void)
{
	const char *text = slurp("/proc/self/smaps");

	say_field("rss", find_vma(text, mapped), "Rss:");
	say_field("flags", find_vma(text, mapped), "VmFlags:");
	say_field("control", find_vma(text, control), "Rss:");
}

static void read_smaps_rollup(void)
{
	slurp("/proc/self/smaps_rollup");
}

static void read_numa_maps(void)
{
	const char *text = slurp("/proc/self/numa_maps"), *line;

	line = find_vma(text, mapped);
	ktap_value("pages", "%s", memmem(line, strcspn(line, "\n"), " N0=", 4) ? "some" : "none");
	line = find_vma(text, control);
	ktap_value("control", "%s", memmem(line, strcspn(line, "\n"), " N0=", 4) ? "ok" : "none");
}

static void read_process_vm(void)
{
	uint64_t word = 0;
	struct iovec local = { &word, sizeof(word) }, remote = { mapped, sizeof(word) };

	say("read", process_vm_readv(child, &local, 1, &remote, 1, 0));
	say("write", process_vm_writev(child, &local, 1, &remote, 1, 0));
	remote.iov_base = control;
	say("control", process_vm_readv(child, &local, 1, &remote, 1, 0));
	check_control(word);
}

static void read_ptrace(void)
{
	int status;
	long word;

	if (ptrace(PTRACE_SEIZE, child, NULL, NULL) || ptrace(PTRACE_INTERRUPT, child, NULL, NULL) ||
	    waitpid(child, &status, __WALL) != child || !WIFSTOPPED(status))
		hp_die("ptrace");
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, child, mapped, NULL);
	ktap_value("peek", "%s", errno ? hp_errno_name(errno) : "ok");
	say("poke", ptrace(PTRACE_POKEDATA, child, mapped, 5));
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, child, control, NULL);
	ktap_value("control", "%s", errno ? hp_errno_name(errno) : "ok");
	check_control((uint64_t)word);
	if (ptrace(PTRACE_DETACH, child, NULL, NULL))
		hp_die("PTRACE_DETACH");
}

static void read_mem(void)
{
	uint64_t word = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		hp_die("%s", path);
	say("read", pread(fd, &word, sizeof(word), (off_t)mapped));
	say("write", pwrite(fd, &word, sizeof(word), (off_t)mapped));
	say("control", pread(fd, &word, sizeof(word), (off_t)control));
	check_control(word);
	close(fd);
}

static void read_vmsplice(void)
{
	struct iovec one = { mapped, 4096 };
	int ends[2];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		hp_die("pipe");
	say("gift", vmsplice(ends[1], &one, 1, 0));
	one.iov_base = control;
	say("control", vmsplice(ends[1], &one, 1, 0));
}

/* A block device over a file in memory: direct I/O to the file itself would pin no pages. */
static int open_loop(void)
{
	int control_fd = open("/dev/loop-control", O_RDWR | O_CLOEXEC), number, file_fd, loop_fd;
	char path[32];

	number = control_fd < 0 ? -1 : ioctl(control_fd, LOOP_CTL_GET_FREE);
	snprintf(path, sizeof(path), "/dev/loop%d", number);
	loop_fd = number < 0 ? -1 : open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	file_fd = open("/tmp/disk", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (loop_fd < 0 || file_fd < 0 || ftruncate(file_fd, MIB(1)) || ioctl(loop_fd, LOOP_SET_FD, file_fd))
		hp_die("loop device");
	return loop_fd;
}

static void read_direct(void)
{
	int fd = open_loop();

	say("write", pwrite(fd, mapped, 4096, 0));
	say("read", pread(fd, mapped, 4096, 0));
	say("control", pwrite(fd, control, 4096, 0));
	close(fd);
}

/* write(2) and read(2) go through the process's own mapping, as its own loads and stores do. */
static void read_write(void)
{
	uint64_t word = 1;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		hp_die("pipe");
	say("write", write(ends[1], mapped, sizeof(word)));
	say("read", read(ends[0], mapped, sizeof(word)));
	say("control", write(ends[1], control, sizeof(word)));
}

/* How many bytes of the mapping at ADDR are in the core file. */
static void say_segment(const char *name, const char *core, const void *addr)
{
	const Elf64_Ehdr *head = (const void *)core;
	const Elf64_Phdr *part = (const void *)(core + head->e_phoff);

	for (int i = 0; i < head->e_phnum; i++)
		if (part[i].p_type == PT_LOAD && part[i].p_vaddr <= (uint64_t)addr &&
		    (uint64_t)addr < part[i].p_vaddr + part[i].p_memsz) {
			ktap_value(name, "%" PRIu64, part[i].p_filesz);
			return;
		}
	ktap_value(name, "absent");
}

static void read_core(void)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	struct stat found;
	const char *core;
	int status, fd;
	pid_t dumped;

	if (hp_write_file("/proc/sys/kernel/core_pattern", "/tmp/core") || setrlimit(RLIMIT_CORE, &unlimited))
		hp_die("core_pattern, RLIMIT_CORE");
	dumped = hp_fork("dumped");
	if (!dumped) {
		hp_write(mapped, 5);
		raise(SIGQUIT);
		_exit(1);
	}
	status = hp_reap(dumped);
	errno = 0;
	if (!WIFSIGNALED(status) || !WCOREDUMP(status))
		hp_die("the child ended with status %d and left no core file", status);
	fd = open("/tmp/core", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &found))
		hp_die("/tmp/core");
	core = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (core == MAP_FAILED)
		hp_die("mmap of /tmp/core");
	say_segment("bytes", core, mapped);
	say_segment("control", core, control);
}

static void read_move_pages(void)
{
	void *pages[2] = { mapped, control };
	int status[2] = { 0, 0 };

	if (syscall(SYS_move_pages, 0, 2, pages, NULL, status, 0))
		hp_die("move_pages");
	ktap_value("status", "%s", status[0] < 0 ? hp_errno_name(-status[0]) : "ok");
	ktap_value("control", "%s", status[1] < 0 ? hp_errno_name(-status[1]) : "ok");
}

static void read_mempolicy(void)
{
	int mode;

	say("node", syscall(SYS_get_mempolicy, &mode, NULL, 0, mapped, MPOL_F_NODE | MPOL_F_ADDR));
	say("policy", syscall(SYS_get_mempolicy, &mode, NULL, 0, mapped, MPOL_F_ADDR));
	say("control", syscall(SYS_get_mempolicy, &mode, NULL, 0, control, MPOL_F_NODE | MPOL_F_ADDR));
}

static void map_dma(const char *name, const char *undo_name, void *addr, size_t size)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map),
						.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
						.vaddr = (uint64_t)addr,
						.iova = IOVA,
						.size = size };
	struct vfio_iommu_type1_dma_unmap undo = { .argsz = sizeof(undo), .iova = IOVA, .size = size };
	long done = ioctl(bar.container_fd, VFIO_IOMMU_MAP_DMA, &map);

	say(name, done);
	if (done)
		return;
	if (ioctl(bar.container_fd, VFIO_IOMMU_UNMAP_DMA, &undo))
		hp_die("VFIO_IOMMU_UNMAP_DMA");
	ktap_value(undo_name, "%llu", (unsigned long long)undo.size);
}

/* The IOMMU gets 2 MiB at most, from the middle of the leaf: kernels that go page by page take seconds for a gigabyte. */
static void read_map_dma(void)
{
	size_t size = length < MIB(2) ? length : MIB(2);

	ktap_value("size", "%zu", size);
	map_dma("map", "unmapped", (char *)mapped + (length > size ? length / 2 : 0), size);
	map_dma("control", "control-unmapped", control, 4096);
}

static const struct reader {
	const char *name;
	void (*run)(void);
	const char *needs; /* a file that exists if the kernel has it */
} readers[] = {
	{ "pagemap", read_pagemap, NULL },
	{ "smaps", read_smaps, NULL },
	{ "smaps-rollup", read_smaps_rollup, NULL },
	{ "numa-maps", read_numa_maps, "/proc/self/numa_maps" },
	{ "process-vm", read_process_vm, NULL },
	{ "ptrace", read_ptrace, NULL },
	{ "mem", read_mem, NULL },
	{ "vmsplice", read_vmsplice, NULL },
	{ "direct", read_direct, "/dev/loop-control" },
	{ "write", read_write, NULL },
	{ "core", read_core, "/proc/sys/kernel/core_pattern" },
	{ "move-pages", read_move_pages, "/proc/self/numa_maps" },
	{ "mempolicy", read_mempolicy, "/proc/self/numa_maps" },
	{ "map-dma", read_map_dma, NULL },
};

/* The scenario may have sent a module that is not loaded in every machine. */
static void load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
		hp_die("%s", path);
	if (fd >= 0)
		close(fd);
}

static void map_control(void)
{
	/* Shared, so that the child has the same page; without a neighbour, so that smaps has a part for it alone. */
	control = mmap(hp_reserve(MIB(2), MIB(2)), 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (control == MAP_FAILED)
		hp_die("mmap");
	hp_map(&(struct hp_mapping){ .name = "control",
				     .addr = control,
				     .length = 4096,
				     .prot = PROT_READ | PROT_WRITE,
				     .backing = HP_RAM,
				     .pagemap_pages = 1 });
	hp_write(control, CONTROL_VALUE);
}

static _Noreturn void child_main(const struct hp_gate *gates)
{
	hp_write(mapped, 2);
	hp_read(control);
	hp_gate_open(&gates[0]);
	hp_gate_wait(&gates[1]);
	_exit(0);
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);
	const struct reader *reader = hp_choose(&options, "case", "", readers);
	bool untouched = atoi(hp_option(&options, "untouched", "0"));
	struct hp_gate gates[2];

	bar = hp_bar_open(2);
	load_module(hp_option(&options, "module", ""));
	if (reader->needs && access(reader->needs, F_OK))
		ktap_skip_all("this kernel has no %s", reader->needs);
	ktap_plan(1);
	mapped = hp_bar_map(&bar, options.level, PROT_READ | PROT_WRITE);
	length = options.level == HP_PTE ? 4 * KIB(4) : hp_leaf_size(options.level);
	map_control();

	if (!untouched) {
		hp_write(mapped, 1);
		hp_gate_init(&gates[0]);
		hp_gate_init(&gates[1]);
		child = hp_fork("child");
		if (!child)
			child_main(gates);
		hp_gate_wait(&gates[0]);
	}
	checkpoint("before");
	reader->run();
	checkpoint("after");
	hp_write(mapped, 3);
	checkpoint("again");
	if (child)
		hp_gate_open(&gates[1]);
	ktap_ok(!child || hp_reap(child) == 0, "the child went on and ended");
	return ktap_finish();
}
