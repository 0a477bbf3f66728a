/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same operations in plain C, for comparison: no shim and no checks, only the system calls and the
 * accesses. Each function returns nanoseconds, or -errno.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

struct range {
	uint64_t vaddr;
	uint64_t iova;
	uint64_t size;
};

static int64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

/* One VFIO_IOMMU_MAP_DMA for each range. */
int64_t twin_map(int container, const struct range *ranges, uint64_t count)
{
	int64_t begun = now();

	for (uint64_t at = 0; at < count; at++) {
		struct vfio_iommu_type1_dma_map map = {
			.argsz = sizeof(map),
			.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
			.vaddr = ranges[at].vaddr,
			.iova = ranges[at].iova,
			.size = ranges[at].size,
		};
		if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map) < 0)
			return -errno;
	}
	return now() - begun;
}

/* One VFIO_IOMMU_UNMAP_DMA for all ranges. */
int64_t twin_unmap(int container, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof(unmap), .iova = iova, .size = size };
	int64_t begun = now();

	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) < 0)
		return -errno;
	return now() - begun;
}

int64_t twin_read32(volatile uint32_t *address, uint64_t count)
{
	int64_t begun = now();

	while (count--)
		(void)*address;
	return now() - begun;
}

int64_t twin_write32(volatile uint32_t *address, uint32_t value, uint64_t count)
{
	int64_t begun = now();

	while (count--)
		*address = value;
	return now() - begun;
}

/* Write a register that raises an interrupt, and wait for its eventfd, `count` times. */
int64_t twin_interrupts(volatile uint32_t *raise, volatile uint32_t *acknowledge, int eventfd, uint64_t count)
{
	struct pollfd poll_for = { .fd = eventfd, .events = POLLIN };
	int64_t begun = now();
	uint64_t counted;

	while (count--) {
		*raise = 1;
		if (poll(&poll_for, 1, 30000) != 1)
			return -ETIMEDOUT;
		if (read(eventfd, &counted, sizeof(counted)) != sizeof(counted))
			return -errno;
		*acknowledge = 1;
	}
	return now() - begun;
}
