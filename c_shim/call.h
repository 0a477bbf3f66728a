/* SPDX-License-Identifier: Apache-2.0 */
/* What every file of the shim calls the kernel by. */
#ifndef VFIOTOOL_CALL_H
#define VFIOTOOL_CALL_H

#include <errno.h>
#include <sys/ioctl.h>

/* ioctl(2) with -errno for failure. None of the calls here has an effect when it gives EINTR. */
static inline int vt_call(int fd, unsigned long request, unsigned long argument)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : result;
}

#endif
