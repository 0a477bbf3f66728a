/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that Python cannot make exactly or fast enough.
 *
 * Every function returns a value >= 0, or -errno. No function keeps state, allocates or prints, so any
 * thread may call it at any time; cffi releases the GIL around each call. Descriptors are opened
 * close-on-exec. A call that a signal interrupts (EINTR) is repeated, except for the waits in irq.h.
 *
 * build_shim.py reads the declarations between the two markers of each header below. They contain no
 * preprocessor lines.
 */
#ifndef VFIOTOOL_SHIM_H
#define VFIOTOOL_SHIM_H

#include "dma.h"
#include "group.h"
#include "irq.h"
#include "memory.h"
#include "mmio.h"
#include "nvme.h"

#endif
