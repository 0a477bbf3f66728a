/* SPDX-License-Identifier: Apache-2.0 */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>

/* ioctl(2) with -errno for failure. None of the calls here has an effect when it gives EINTR. */
static int call(int fd, unsigned long request, unsigned long argument)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : result;
}

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
	return call(container, VFIO_GET_API_VERSION, 0);
}

int vt_container_check_extension(int container, int extension)
{
	return call(container, VFIO_CHECK_EXTENSION, (unsigned long)extension);
}

int vt_container_set_iommu(int container, int iommu)
{
	return call(container, VFIO_SET_IOMMU, (unsigned long)iommu);
}

int vt_group_status(int group)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int result = call(group, VFIO_GROUP_GET_STATUS, (unsigned long)&status);

	return result < 0 ? result : (int)status.flags;
}

int vt_group_set_container(int group, int container)
{
	return call(group, VFIO_GROUP_SET_CONTAINER, (unsigned long)&container);
}

int vt_group_unset_container(int group)
{
	return call(group, VFIO_GROUP_UNSET_CONTAINER, 0);
}

int vt_group_device_fd(int group, const char *name)
{
	/* The kernel makes this fd close-on-exec itself. */
	return call(group, VFIO_GROUP_GET_DEVICE_FD, (unsigned long)name);
}

int vt_dma_map(int container, uint64_t vaddr, uint64_t iova, uint64_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = flags,
		.vaddr = vaddr,
		.iova = iova,
		.size = size,
	};

	return call(container, VFIO_IOMMU_MAP_DMA, (unsigned long)&map);
}

int64_t vt_dma_unmap(int container, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.iova = iova,
		.size = size,
	};
	int result = call(container, VFIO_IOMMU_UNMAP_DMA, (unsigned long)&unmap);

	return result < 0 ? result : (int64_t)unmap.size;
}
