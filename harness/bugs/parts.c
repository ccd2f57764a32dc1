/*
 * The parts that reproducers are composed of (compose.py): a file gets those that it uses. Each is one definition, with
 * the comment before it, and stands between empty lines.
 */

#define KIB(n) ((size_t)(n) << 10)

#define MIB(n) ((size_t)(n) << 20)

#define GIB(n) ((size_t)(n) << 30)

#define RW (PROT_READ | PROT_WRITE)

/* The device under test, and its largest BAR that can be mapped. */
static int container, device;
static off_t bar_offset;
static size_t bar_size;

static _Noreturn void cannot_tell(const char *why)
{
	printf("CANNOT TELL: %s: %s\n", why, strerror(errno));
	exit(2);
}

static _Noreturn void say(int broken, const char *what)
{
	printf("%s: %s\n", broken ? "BROKEN" : "FINE", what);
	fflush(stdout);
	_exit(broken);
}

/* The command register's memory bit: without it, the BAR answers nobody. */
static void set_memory(int on)
{
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	unsigned short command;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) ||
	    pread(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		cannot_tell("read PCI_COMMAND");
	command = on ? command | PCI_COMMAND_MEMORY : command & ~PCI_COMMAND_MEMORY;
	if (pwrite(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		cannot_tell("write PCI_COMMAND");
}

/* Opens a device that is bound to vfio-pci, by container and group (Documentation/driver-api/vfio.rst). */
static void open_device(const char *bdf)
{
	char path[256], link[256];
	ssize_t length;
	int group;

	setbuf(stdout, NULL);
	if (!bdf) {
		printf("give the PCI address of a device, such as 0000:00:05.0\n");
		exit(2);
	}
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	length = readlink(path, link, sizeof(link) - 1);
	if (length < 0)
		cannot_tell(path);
	link[length] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%.200s", strrchr(link, '/') + 1);
	container = open("/dev/vfio/vfio", O_RDWR);
	group = open(path, O_RDWR);
	if (container < 0 || group < 0)
		cannot_tell("open the vfio group of the device (is it bound to vfio-pci?)");
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) || ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		cannot_tell("set the IOMMU of the container");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
	if (device < 0)
		cannot_tell("VFIO_GROUP_GET_DEVICE_FD");
	for (unsigned int bar = 0; bar < 6; bar++) {
		struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_BAR0_REGION_INDEX + bar };

		if (!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) && info.flags & VFIO_REGION_INFO_FLAG_MMAP &&
		    info.size > bar_size) {
			bar_size = info.size;
			bar_offset = (off_t)info.offset;
		}
	}
	set_memory(1);
}

/* Maps the first SIZE bytes of the BAR where a leaf of SIZE fits, with nothing beside them. */
static volatile char *map_bar(size_t size, int prot)
{
	char *where;

	if (bar_size < size) {
		errno = ENOSPC;
		cannot_tell("the BAR is smaller than a leaf");
	}
	where = mmap(NULL, 3 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (where == MAP_FAILED)
		cannot_tell("mmap of a reservation");
	where = (char *)(((unsigned long)where + 2 * size - 1) & ~(size - 1));
	if (mmap(where, size, prot, MAP_SHARED | MAP_FIXED, device, bar_offset) != where)
		cannot_tell("mmap of the BAR");
	return where;
}

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

/* Page faults that a read of this byte takes. A huge leaf that is there needs none. */
static long faults_of_read(volatile char *at)
{
	long before = faults();

	(void)*at;
	return faults() - before;
}

/* Whether a child that does this is killed by this signal. */
static int child_gets(int signal, void (*action)(void))
{
	int status;
	pid_t child = fork();

	if (child < 0)
		cannot_tell("fork");
	if (!child) {
		action();
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child)
		cannot_tell("waitpid");
	return WIFSIGNALED(status) && WTERMSIG(status) == signal;
}

/* Reads a file of /proc to its end. */
static void read_all(const char *path)
{
	static char text[1 << 16];
	int file = open(path, O_RDONLY);
	ssize_t n;

	if (file < 0)
		cannot_tell(path);
	while ((n = read(file, text, sizeof(text))) > 0)
		;
	close(file);
}

/* How often the kernel log says this. */
static int logged(const char *words)
{
	int size = klogctl(10, NULL, 0), length, found = 0; /* SYSLOG_ACTION_SIZE_BUFFER */
	char *log = malloc((size_t)size + 1);

	length = log ? klogctl(3, log, size) : -1; /* SYSLOG_ACTION_READ_ALL */
	if (length < 0)
		cannot_tell("read the kernel log");
	log[length] = 0;
	for (char *at = log; (at = strstr(at, words)); at++)
		found++;
	free(log);
	return found;
}

static void give_up(int signal)
{
	(void)signal;
	say(1, "the access still faults after 10 seconds");
}

/* Says BROKEN if the process is still here in ten seconds. */
static void must_end(void)
{
	signal(SIGALRM, give_up);
	alarm(10);
}

/* Where the sequence of operations happens, in every process: 4 GiB in which nothing else is. */
#define ARENA ((char *)(1ul << 44))

/* What the processes share: which step is next, and what the last one answered. */
struct turns {
	int step;
	char said[24];
	unsigned long word;
	long refaults;
};

static volatile struct turns *turn;

static void share_turns(void)
{
	turn = mmap(NULL, KIB(4), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (turn == MAP_FAILED)
		cannot_tell("mmap of what the processes share");
	turn->step = 1;
}

/* Keeps what a system call answered. */
static void answer(int failed)
{
	snprintf((char *)turn->said, sizeof(turn->said), "%s", failed ? strerrorname_np(errno) : "0");
}

static __thread sigjmp_buf after_refusal;

static void on_refusal(int number, siginfo_t *info, void *context)
{
	(void)context;
	snprintf((char *)turn->said, sizeof(turn->said), "%s.%d", sigabbrev_np(number), info->si_code);
	siglongjmp(after_refusal, 1);
}

/* Loads or stores a word, and keeps how that ended: "0", or signal and code. */
static void touch(char *at, int store, unsigned long value)
{
	struct sigaction act = { .sa_sigaction = on_refusal, .sa_flags = SA_SIGINFO };

	sigaction(SIGSEGV, &act, NULL);
	sigaction(SIGBUS, &act, NULL);
	must_end();
	if (!sigsetjmp(after_refusal, 1)) {
		if (store)
			*(volatile unsigned long *)at = value;
		else
			turn->word = *(volatile unsigned long *)at;
		answer(0);
	}
	alarm(0);
}

struct thread_access {
	char *at;
	int store;
	unsigned long value;
};

/* The other thread of this process, on the second CPU, and what it shall do. It stays until the end. */
static __thread struct thread_access *volatile wanted;

static void stay_on(int cpu)
{
	unsigned long cpus = 1ul << cpu;

	if (syscall(SYS_sched_setaffinity, 0, sizeof(cpus), &cpus) < 0)
		cannot_tell("sched_setaffinity; are there two CPUs?");
}

static void *serve_accesses(void *argument)
{
	struct thread_access *volatile *order = argument;

	stay_on(1);
	for (;;) {
		while (!*order)
			sched_yield();
		touch((*order)->at, (*order)->store, (*order)->value);
		*order = NULL;
	}
	return NULL;
}

/* The same in the other thread, whose CPU may know an old entry in its TLB. */
static void touch_on_other_thread(char *at, int store, unsigned long value)
{
	static int owner;
	struct thread_access access = { at, store, value };
	pthread_t thread;

	if (owner != getpid()) {
		owner = getpid();
		stay_on(0);
		if (pthread_create(&thread, NULL, serve_accesses, (void *)&wanted))
			cannot_tell("pthread_create");
	}
	wanted = &access;
	while (wanted)
		sched_yield();
}

/* The kernel loads or stores a word, from or to a pipe. */
static void through_a_pipe(char *at, int store, unsigned long value)
{
	int ends[2];

	if (pipe(ends) || (store && write(ends[1], &value, sizeof(value)) < 0))
		cannot_tell("a pipe");
	answer((store ? read(ends[0], at, sizeof(value)) : write(ends[1], at, sizeof(value))) != sizeof(value));
	if (!store && !strcmp((char *)turn->said, "0") && read(ends[0], &value, sizeof(value)) > 0)
		turn->word = value;
	close(ends[0]);
	close(ends[1]);
}

/* Reads a word of this process's memory from /proc/self/mem. */
static void peek(char *at)
{
	int file = open("/proc/self/mem", O_RDONLY);
	unsigned long word = 0;

	answer(pread(file, &word, sizeof(word), (off_t)(unsigned long)at) != sizeof(word));
	turn->word = word;
	close(file);
}

/* The same by a system call that takes the page: process_vm_readv(), or vmsplice() into a pipe. */
static void peek_by(int splice, char *at)
{
	unsigned long word = 0;
	struct iovec theirs = { at, sizeof(word) }, ours = { &word, sizeof(word) };
	int ends[2];

	if (pipe(ends))
		cannot_tell("a pipe");
	answer((splice ? vmsplice(ends[1], &theirs, 1, 0) : process_vm_readv(getpid(), &ours, 1, &theirs, 1, 0)) < 0);
	if (splice && !strcmp((char *)turn->said, "0") && read(ends[0], &word, sizeof(word)) < 0)
		cannot_tell("read of the pipe");
	turn->word = word;
	close(ends[0]);
	close(ends[1]);
}

/* A load or store by a child that has this process's memory. */
static void touch_by_vfork(char *at, int store, unsigned long value)
{
	pid_t child = vfork();

	if (!child) {
		touch(at, store, value);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

/* PAGEMAP_SCAN for present pages; its struct, in words, is newer than many headers. */
static void scan(char *at, size_t size)
{
	unsigned long found[16][3], wanted[12] = { sizeof(wanted), 0, (unsigned long)at, (unsigned long)at + size };
	int file = open("/proc/self/pagemap", O_RDONLY), ranges;

	wanted[5] = (unsigned long)found;
	wanted[6] = 16;
	wanted[9] = wanted[11] = 1 << 3; /* PAGE_IS_PRESENT */
	ranges = ioctl(file, 0xc0606610ul, wanted);
	answer(ranges < 0);
	turn->word = 0;
	for (int i = 0; i < ranges; i++)
		turn->word += (found[i][1] - found[i][0]) / KIB(4);
	close(file);
}

static void ask_mincore(char *at, size_t size)
{
	unsigned char *in_core = malloc(size / KIB(4));

	answer(mincore(at, size, in_core));
	free(in_core);
}

/* Has userfaultfd watch a range, and takes that back. */
static void watch(char *at, size_t size, unsigned long mode, unsigned long features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register range = { .range = { (unsigned long)at, size }, .mode = mode };
	int file = (int)syscall(SYS_userfaultfd, O_NONBLOCK);

	answer(file < 0 || ioctl(file, UFFDIO_API, &api) || ioctl(file, UFFDIO_REGISTER, &range));
	close(file);
}

/* VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY (3) or _EXIT (5). */
static void set_power(unsigned int feature)
{
	struct vfio_device_feature what = { .argsz = sizeof(what), .flags = VFIO_DEVICE_FEATURE_SET | feature };

	answer(ioctl(device, VFIO_DEVICE_FEATURE, &what));
}

static void write_file(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);

	answer(file < 0 || write(file, text, strlen(text)) < 0);
	close(file);
}

/* Maps a range for DMA, and unmaps it again. */
static void map_for_dma(char *at, size_t size, unsigned long iova)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .iova = iova, .size = size };
	struct vfio_iommu_type1_dma_unmap undo = { .argsz = sizeof(undo), .iova = iova, .size = size };

	map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
	map.vaddr = (unsigned long)at;
	answer(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) || ioctl(container, VFIO_IOMMU_UNMAP_DMA, &undo));
}

static void do_step(int step);

struct racer {
	int step, rounds;
};

static void *race_alone(void *argument)
{
	const struct racer *racer = argument;

	for (int round = 0; round < racer->rounds; round++)
		do_step(racer->step);
	return NULL;
}

/* Does two steps against each other, in two threads. */
static void race(int one, int other, int rounds)
{
	struct racer first = { one, rounds }, second = { other, rounds };
	pthread_t thread;

	if (pthread_create(&thread, NULL, race_alone, &first))
		cannot_tell("pthread_create");
	race_alone(&second);
	pthread_join(thread, NULL);
}

/* Writes to a file of sysfs. */
static void set(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		cannot_tell(path);
	close(fd);
}

/* The first 1G of /dev/dax0.0, which is made of namespace0.0 (memmap=2G!4G on the command line) if there is none. */
static char *map_dax(void)
{
	char *where = mmap(NULL, GIB(2), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/dev/dax0.0", O_RDWR);

	setbuf(stdout, NULL);
	if (fd < 0) {
		set("/sys/bus/nd/drivers/nd_pmem/unbind", "namespace0.0");
		set("/sys/bus/nd/devices/dax0.0/uuid", "12345678-1234-1234-1234-123456789abc");
		set("/sys/bus/nd/devices/dax0.0/mode", "pmem");
		set("/sys/bus/nd/devices/dax0.0/align", "1073741824");
		set("/sys/bus/nd/devices/dax0.0/namespace", "namespace0.0");
		set("/sys/bus/nd/drivers/dax_pmem/bind", "dax0.0");
		fd = open("/dev/dax0.0", O_RDWR);
	}
	where = (char *)(((unsigned long)where + GIB(1) - 1) & ~(GIB(1) - 1));
	where = mmap(where, GIB(1), RW, MAP_SHARED | MAP_FIXED, fd, 0);
	if (where == MAP_FAILED)
		cannot_tell("map 1G of /dev/dax0.0");
	return where;
}
