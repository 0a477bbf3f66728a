/* SPDX-License-Identifier: Apache-2.0 */
/* Waits for interrupts, which the kernel counts in eventfds. */
#ifndef VFIOTOOL_IRQ_H
#define VFIOTOOL_IRQ_H

#include <stdint.h>

/* declarations */

/*
 * Read the count of a non-blocking eventfd, at least 1. If the count is 0, wait until the monotonic clock
 * reaches `deadline_ns`, or without a limit if `deadline_ns` is negative.
 *
 * -ETIMEDOUT: the count was 0 until the deadline; it was read at least once. -EINTR: a signal arrived, which
 * the caller must handle; a call with the same deadline continues the wait. -EOVERFLOW: the count does not
 * fit, and is lost; no device reaches such a count.
 */
int64_t vt_eventfd_wait(int fd, int64_t deadline_ns);

/* end of declarations */

#endif
