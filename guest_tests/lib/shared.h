/* SPDX-License-Identifier: GPL-2.0-only */
/* What all processes of a run share: who they are, what they mapped, and the channel on which they report it. */
#ifndef HUGEPFN_SHARED_H
#define HUGEPFN_SHARED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define HP_PROCESSES 64
#define HP_MAPPINGS 256
#define HP_NAME 32
#define HP_PAGEMAP_PAGES 512
#define HP_LINE (128 + HP_PAGEMAP_PAGES * 23)

struct shared_process {
	pid_t pid;
	char name[HP_NAME];
};

struct shared_mapping {
	pid_t owner;
	char name[HP_NAME];
	uint64_t vaddr;
	size_t pagemap_pages;
};

/* Every process of the run sees the same table, so that each can read the others' pagemap. */
struct shared {
	atomic_flag lock;
	struct shared_process process[HP_PROCESSES];
	struct shared_mapping mapping[HP_MAPPINGS];
	char notes[1024]; /* about checkpoints, that are not on stdout yet */
};

extern struct shared *shared;

/* Maps the shared table, and takes the events channel from the environment. */
void open_events(void);

/* False for a program that was started by hand: it then waits for nobody. */
bool host_listens(void);

void lock_shared(void);
void unlock_shared(void);

/* Dies if the name is empty, too long, or contains a blank. */
void check_name(const char *name);

/* From here to send_told(), the lines of this process to the events channel go out in one write. */
void gather_told(void);
void send_told(void);

/* Writes a line to the events channel. */
void tell_line(const char *line, size_t length);
void __attribute__((format(printf, 1, 2))) tell(const char *fmt, ...);

/* Notes on stdout, with the next line of any process: values before and after it belong to different checkpoints. */
void note_checkpoint(const char *name);
void print_checkpoints(void);

/* Reports the pagemap words of every mapping with pagemap_pages, of all processes. */
void tell_pagemaps(void);

/* Reports how many leaves KVM counts in each virtual machine (kvm.c). */
void tell_vms(void);

/* Reports how many bytes VFIO has mapped for each device (dma.c). */
void tell_iommus(void);

#endif
