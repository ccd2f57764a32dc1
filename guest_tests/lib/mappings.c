// SPDX-License-Identifier: GPL-2.0-only
/* Mappings: tell the host what was mapped where, and what /proc/PID/pagemap says about it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "hugepfn.h"
#include "shared.h"

void hp_map(const struct hp_mapping *mapping)
{
	const char *backing = mapping->backing == HP_RAM ? "ram" : mapping->region ? mapping->region : "bar";
	struct shared_mapping *slot = NULL;
	pid_t pid = getpid();

	check_name(mapping->name);
	lock_shared();
	for (int i = 0; i < HP_MAPPINGS; i++) {
		struct shared_mapping *m = &shared->mapping[i];

		if (m->owner == pid && !strcmp(m->name, mapping->name)) {
			slot = m;
			break;
		}
		if (!m->owner && !slot)
			slot = m;
	}
	if (!slot) {
		unlock_shared();
		errno = ENOSPC;
		hp_die("more than %d mappings", HP_MAPPINGS);
	}
	slot->owner = pid;
	strcpy(slot->name, mapping->name);
	slot->vaddr = (uint64_t)mapping->addr;
	slot->pagemap_pages = mapping->pagemap_pages;
	if (slot->pagemap_pages > HP_PAGEMAP_PAGES)
		slot->pagemap_pages = HP_PAGEMAP_PAGES;
	unlock_shared();
	tell("mapping %s %d %" PRIx64 " %zx %x %s %" PRIx64 "\n", mapping->name, pid, (uint64_t)mapping->addr,
	     mapping->length, mapping->prot, backing, mapping->file_offset);
}

void hp_unmap(const char *name)
{
	pid_t pid = getpid();

	lock_shared();
	for (int i = 0; i < HP_MAPPINGS; i++)
		if (shared->mapping[i].owner == pid && !strcmp(shared->mapping[i].name, name))
			shared->mapping[i].owner = 0;
	unlock_shared();
	tell("unmapping %s %d\n", name, pid);
}

/* The guest's own witness: /proc/PID/pagemap of one mapping, as one line of hex words. */
static void tell_pagemap(const struct shared_mapping *m)
{
	char path[64], line[HP_LINE];
	uint64_t words[HP_PAGEMAP_PAGES];
	ssize_t n;
	int fd, length;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", m->owner);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return; /* the process is gone: there is nothing to report */
	n = pread(fd, words, m->pagemap_pages * sizeof(*words), (off_t)(m->vaddr / 4096 * sizeof(*words)));
	close(fd);
	if (n != (ssize_t)(m->pagemap_pages * sizeof(*words)))
		hp_die("read of %s: %zd of %zu bytes", path, n, m->pagemap_pages * sizeof(*words));
	length = snprintf(line, sizeof(line), "pagemap %s %d", m->name, m->owner);
	for (size_t i = 0, next; i < m->pagemap_pages; i = next) {
		for (next = i + 1; next < m->pagemap_pages && words[next] == words[i]; next++)
			;
		length += snprintf(line + length, sizeof(line) - (size_t)length, " %" PRIx64 "*%zu", words[i], next - i);
	}
	line[length++] = '\n';
	tell_line(line, (size_t)length);
}

void tell_pagemaps(void)
{
	for (int i = 0; i < HP_MAPPINGS; i++)
		if (shared->mapping[i].owner && shared->mapping[i].pagemap_pages)
			tell_pagemap(&shared->mapping[i]);
}
