/*
 * What a scenario's program uses where there is no host that watches it (scenario.py): these definitions stand in for
 * those of guest_tests/lib. Each stands between empty lines, with the comment before it.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* What hugepfn claims about the values that the program reports. All processes share what was reported. */
static struct expectation {
	const char *name, *value;
	int reported, wrong;
} *expected;

static const struct expectation claimed[] = {
	EXPECTATIONS{ NULL, NULL, 0, 0 },
};

static int failed;

static void expect_values(void)
{
	expected = mmap(NULL, sizeof(claimed), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (expected == MAP_FAILED)
		hp_die("mmap");
	memcpy(expected, claimed, sizeof(claimed));
}

/* Processes and mappings are printed, so that other tools can look at them. */
static void checkpoint(const char *name)
{
	printf("checkpoint %s of process %d\n", name, getpid());
	fflush(stdout);
}

static void hp_map(const struct hp_mapping *mapping)
{
	printf("process %d has %zu bytes at %p: %s\n", getpid(), mapping->length, mapping->addr, mapping->name);
	fflush(stdout);
}

static void hp_unmap(const char *name)
{
	printf("process %d no longer has %s\n", getpid(), name);
	fflush(stdout);
}

static void hp_register(const char *name)
{
	printf("process %d is the %s\n", getpid(), name);
	fflush(stdout);
}

static struct hp_options hp_start(int argc, char **argv)
{
	struct hp_options options = { .level = HP_PTE, .argc = 1, .argv = argv };

	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--level=", 8))
			argv[options.argc++] = argv[i];
		else
			options.level = hp_level_of("--level=", argv[i] + 8);
	}
	expect_values();
	hp_register(getenv("HUGEPFN_PROCESS_NAME") ? getenv("HUGEPFN_PROCESS_NAME") : "parent");
	return options;
}

static _Noreturn void hp_exec(const char *name, char *const argv[])
{
	if (setenv("HUGEPFN_PROCESS_NAME", name, 1))
		hp_die("setenv");
	execv("/proc/self/exe", argv);
	hp_die("exec");
}

static int hp_reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			hp_die("waitpid %d", pid);
	for (int i = 0; i < HP_CHILDREN; i++)
		if (children[i].pid == pid)
			forget_child(i);
	return status;
}

/* A child that a signal killed will open no gate. */
static void notice_end_of_child(int i)
{
	siginfo_t info = { .si_pid = 0 };

	if (waitid(P_PID, (id_t)children[i].pid, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid)
		return;
	if (info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED) {
		printf("BROKEN: the %s was killed by signal %d\n", children[i].name, info.si_status);
		exit(1);
	}
	forget_child(i);
}

static void tell(const char *line, ...)
{
	(void)line;
}

static void check_name(const char *name)
{
	(void)name;
}

static void ktap_plan(unsigned int tests)
{
	(void)tests;
}

static int ktap_ok(int ok, const char *fmt, ...)
{
	va_list args;

	failed += !ok;
	printf("%s: ", ok ? "holds" : "does not hold");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
	return ok;
}

static void ktap_note(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

static void ktap_value(const char *name, const char *fmt, ...)
{
	char value[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(value, sizeof(value), fmt, args);
	va_end(args);
	printf("%s: %s\n", name, value);
	fflush(stdout);
	for (struct expectation *one = expected; one->name; one++) {
		if (strcmp(one->name, name))
			continue;
		one->reported = 1;
		one->wrong = strcmp(one->value, value) != 0;
	}
}

static _Noreturn void ktap_skip_all(const char *fmt, ...)
{
	va_list args;

	printf("CANNOT TELL: ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
	exit(2);
}

static _Noreturn void hp_die(const char *fmt, ...)
{
	int error = errno;
	va_list args;

	printf("CANNOT TELL: ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf(": %s\n", error ? strerror(error) : "no error number");
	exit(2);
}

static int ktap_finish(void)
{
	int told = 0;

	for (struct expectation *one = expected; one->name; one++) {
		told += one->reported;
		failed += one->wrong;
		if (one->wrong)
			printf("%s is not %s, as it should be\n", one->name, one->value);
	}
	if (failed)
		printf("BROKEN: what does not hold, of what user space can tell: %d\n", failed);
	else if (told)
		printf("FINE: as far as user space can tell; values checked: %d\n", told);
	else
		printf("CANNOT TELL: what is claimed is about page-table entries, which only hugepfn shows\n");
	return failed ? 1 : told ? 0 : 2;
}

/* Where the device is, for the program. */
static void find_device(const char *bdf)
{
	char path[256], link[256];
	ssize_t length;

	if (!bdf)
		return;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	length = readlink(path, link, sizeof(link) - 1);
	if (length < 0)
		hp_die("%s", path);
	link[length] = 0;
	if (setenv("HUGEPFN_VFIO_BDF", bdf, 1) || setenv("HUGEPFN_VFIO_GROUP", strrchr(link, '/') + 1, 1))
		hp_die("setenv");
}
