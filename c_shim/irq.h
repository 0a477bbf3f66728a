/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for interrupts, which the kernel counts in eventfds. */
#ifndef VFIOTOOL_IRQ_H
#define VFIOTOOL_IRQ_H

#include <stdint.h>

/* declarations */

/*
 * Take what a non-blocking eventfd has counted, at least 1; where that is 0, wait for it until the
 * monotonic clock shows `deadline_ns`, or for ever where that is negative.
 *
 * -ETIMEDOUT: it has counted nothing by then, and was looked at once in any case. -EINTR: a signal came,
 * for the caller to handle; called again with the same deadline, it waits on. -EOVERFLOW: the count, which
 * is lost then, does not fit; no device counts so far.
 */
int64_t vt_eventfd_wait(int fd, int64_t deadline_ns);

/* end of declarations */

#endif
