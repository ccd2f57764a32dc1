/* SPDX-License-Identifier: GPL-2.0-only */
/* Files that the host sends and reads. */
#ifndef HUGEPFN_FILES_H
#define HUGEPFN_FILES_H

#include "frames.h"

void put_file(struct request *request);
void get_file(struct request *request);

#endif
