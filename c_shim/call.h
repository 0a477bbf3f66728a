/* SPDX-License-Identifier: Apache-2.0 */
/* The system calls of the shim. */
#ifndef VFIOTOOL_CALL_H
#define VFIOTOOL_CALL_H

#include <errno.h>
#include <sys/ioctl.h>

/* ioctl(2) that returns -errno. No ioctl of the shim has an effect if it fails with EINTR. */
static inline int vt_call(int fd, unsigned long request, unsigned long argument)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : result;
}

#endif
