/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "irq.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

/* Returns 0 once the eventfd may be readable. */
static int await(int fd, int64_t deadline_ns)
{
	struct pollfd event = { .fd = fd, .events = POLLIN };
	struct timespec left = { 0 };

	if (deadline_ns >= 0) {
		int64_t remaining = deadline_ns - now();

		if (remaining <= 0)
			return -ETIMEDOUT;
		left.tv_sec = remaining / SECOND;
		left.tv_nsec = remaining % SECOND;
	}
	return ppoll(&event, 1, deadline_ns < 0 ? NULL : &left, NULL) < 0 ? -errno : 0;
}

int64_t vt_eventfd_wait(int fd, int64_t deadline_ns)
{
	uint64_t count;
	int error;

	/* Another thread may read the count between poll and read, hence the loop. */
	while (read(fd, &count, sizeof(count)) < 0) {
		if (errno != EAGAIN)
			return -errno;
		error = await(fd, deadline_ns);
		if (error)
			return error;
	}
	return count > INT64_MAX ? -EOVERFLOW : (int64_t)count;
}
