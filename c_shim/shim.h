/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Python must not do: the calls whose result must be exact, and those that must be fast.
 *
 * Every function returns a value >= 0, or -errno. None keeps state, allocates or prints, so any
 * thread may call any of them at any time; cffi releases the GIL around each call. What they open
 * is close-on-exec. A call that a signal interrupts (EINTR) is made again, but for the waiting in irq.h.
 *
 * build_shim.py reads what stands between the two markers of each file below, which has no
 * preprocessor lines there.
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
