// SPDX-License-Identifier: GPL-2.0-only
/* A program's own options, and the choice of an element of a table by its name. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "hugepfn.h"

const char *hp_option(const struct hp_options *options, const char *name, const char *otherwise)
{
	size_t length = strlen(name);

	for (int i = 1; i < options->argc; i++) {
		const char *given = options->argv[i];

		if (!strncmp(given, "--", 2) && !strncmp(given + 2, name, length) && given[2 + length] == '=')
			return given + 3 + length;
	}
	return otherwise;
}

size_t hp_index(const char *what, const char *given, const char *const *name, size_t stride, size_t count)
{
	char known[1024] = "";
	size_t used = 0;

	for (size_t i = 0; i < count; i++) {
		const char *each = *(const char *const *)((const char *)name + i * stride);

		if (!strcmp(each, given))
			return i;
		if (used < sizeof(known))
			used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", each);
	}
	errno = EINVAL;
	hp_die("%s%s: expected one of %s", what, given, known);
}
