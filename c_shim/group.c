/* SPDX-License-Identifier: Apache-2.0 */
#include "group.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>

#include "call.h"

int vt_open(const char *path)
{
	int fd;

	do
		fd = open(path, O_RDWR | O_CLOEXEC);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

int vt_container_api_version(int container)
{
	return vt_call(container, VFIO_GET_API_VERSION, 0);
}

int vt_container_check_extension(int container, int extension)
{
	return vt_call(container, VFIO_CHECK_EXTENSION, (unsigned long)extension);
}

int vt_container_set_iommu(int container, int iommu)
{
	return vt_call(container, VFIO_SET_IOMMU, (unsigned long)iommu);
}

int vt_group_status(int group)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int result = vt_call(group, VFIO_GROUP_GET_STATUS, (unsigned long)&status);

	return result < 0 ? result : (int)status.flags;
}

int vt_group_set_container(int group, int container)
{
	return vt_call(group, VFIO_GROUP_SET_CONTAINER, (unsigned long)&container);
}

int vt_group_unset_container(int group)
{
	return vt_call(group, VFIO_GROUP_UNSET_CONTAINER, 0);
}

int vt_group_device_fd(int group, const char *name)
{
	/* The kernel sets close-on-exec for this fd. */
	return vt_call(group, VFIO_GROUP_GET_DEVICE_FD, (unsigned long)name);
}
