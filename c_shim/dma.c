/* SPDX-License-Identifier: Apache-2.0 */
#include "dma.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>

#include "call.h"
#include "iommufd_abi.h"

static int type1_map(int fd, const struct vt_range *range, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = flags,
		.vaddr = range->vaddr,
		.iova = range->iova,
		.size = range->size,
	};

	return vt_call(fd, VFIO_IOMMU_MAP_DMA, (unsigned long)&map);
}

static int64_t type1_unmap(int fd, uint64_t iova, uint64_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.flags = flags,
		.iova = iova,
		.size = size,
	};
	int result = vt_call(fd, VFIO_IOMMU_UNMAP_DMA, (unsigned long)&unmap);

	return result < 0 ? result : (int64_t)unmap.size;
}

static int64_t ioas_unmap(int fd, uint32_t ioas, uint64_t iova, uint64_t size)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = ioas,
		.iova = iova,
		.length = size,
	};
	int result = vt_call(fd, IOMMU_IOAS_UNMAP, (unsigned long)&unmap);

	return result < 0 ? result : (int64_t)unmap.length;
}

static int ioas_map(int fd, uint32_t ioas, const struct vt_range *range, uint32_t flags)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA |
			 (flags & VFIO_DMA_MAP_FLAG_READ ? IOMMU_IOAS_MAP_READABLE : 0) |
			 (flags & VFIO_DMA_MAP_FLAG_WRITE ? IOMMU_IOAS_MAP_WRITEABLE : 0),
		.ioas_id = ioas,
		.user_va = range->vaddr,
		.length = range->size,
		.iova = range->iova,
	};
	int result = vt_call(fd, IOMMU_IOAS_MAP, (unsigned long)&map);

	/* EFAULT: no such memory; or the kernel mapped it, could not write its reply, and keeps it (6.12). */
	if (result == -EFAULT)
		ioas_unmap(fd, ioas, range->iova, range->size);
	return result;
}

static int map(int fd, uint32_t ioas, const struct vt_range *range, uint32_t flags)
{
	return ioas ? ioas_map(fd, ioas, range, flags) : type1_map(fd, range, flags);
}

int vt_dma_map(int fd, uint32_t ioas, uint64_t vaddr, uint64_t iova, uint64_t size, uint32_t flags)
{
	struct vt_range range = { .vaddr = vaddr, .iova = iova, .size = size };

	return map(fd, ioas, &range, flags);
}

int64_t vt_dma_unmap(int fd, uint32_t ioas, uint64_t iova, uint64_t size)
{
	return ioas ? ioas_unmap(fd, ioas, iova, size) : type1_unmap(fd, iova, size, 0);
}

int64_t vt_dma_unmap_all(int fd, uint32_t ioas)
{
	int64_t result = ioas ? ioas_unmap(fd, ioas, 0, UINT64_MAX) :
				type1_unmap(fd, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL);

	return result == -ENOENT ? 0 : result; /* the IOAS has no mappings */
}

/* Return true if `next` starts at the IOVA where `span` ends. */
static int is_next(const struct vt_range *span, const struct vt_range *next)
{
	uint64_t iova, size;

	return !__builtin_add_overflow(span->iova, span->size, &iova) && iova == next->iova &&
	       !__builtin_add_overflow(span->size, next->size, &size) && span->size && next->size;
}

/* Return true if `next` also continues `run` in memory: both then fit in one mapping. */
static int continues(const struct vt_range *run, const struct vt_range *next)
{
	uint64_t vaddr;

	return is_next(run, next) && !__builtin_add_overflow(run->vaddr, run->size, &vaddr) &&
	       vaddr == next->vaddr;
}

typedef int follows(const struct vt_range *run, const struct vt_range *next);

/* Join the ranges from `first` on that belong to one `run`; returns the index after them. */
static inline uint64_t next_run(const struct vt_range *ranges, uint64_t first, uint64_t count,
				follows *belongs, struct vt_range *run)
{
	uint64_t next = first + 1;

	*run = ranges[first];
	while (next < count && belongs(run, &ranges[next]))
		run->size += ranges[next++].size;
	return next;
}

static inline int64_t merge(const struct vt_range *ranges, uint64_t count, follows *belongs,
			    struct vt_range *runs)
{
	struct vt_range run;
	uint64_t at = 0;
	int64_t found = 0;

	while (at < count) {
		at = next_run(ranges, at, count, belongs, &run);
		runs[found++] = run;
	}
	return found;
}

int64_t vt_ranges_merge(const struct vt_range *ranges, uint64_t count, struct vt_range *runs)
{
	return merge(ranges, count, continues, runs);
}

int64_t vt_ranges_spans(const struct vt_range *ranges, uint64_t count, struct vt_range *spans)
{
	return merge(ranges, count, is_next, spans);
}

int64_t vt_ranges_size(const struct vt_range *ranges, uint64_t count)
{
	uint64_t size = 0;

	for (uint64_t at = 0; at < count; at++)
		if (__builtin_add_overflow(size, ranges[at].size, &size))
			return -EOVERFLOW;
	return size > INT64_MAX ? -EOVERFLOW : (int64_t)size;
}

void vt_ranges_fill(struct vt_range *ranges, const uint64_t *vaddrs, uint64_t count, uint64_t size)
{
	for (uint64_t at = 0; at < count; at++)
		ranges[at] = (struct vt_range){ .vaddr = vaddrs[at], .size = size };
}

static int by_vaddr(const void *left, const void *right)
{
	uint64_t a = ((const struct vt_range *)left)->vaddr;
	uint64_t b = ((const struct vt_range *)right)->vaddr;

	return (a > b) - (a < b);
}

static int is_ordered(const struct vt_range *ranges, uint64_t count)
{
	for (uint64_t at = 1; at < count; at++)
		if (ranges[at - 1].vaddr > ranges[at].vaddr)
			return 0;
	return 1;
}

/* Return how many ranges from `first` on are contiguous in memory, and their size. */
static uint64_t piece(const struct vt_range *ranges, uint64_t first, uint64_t count, uint64_t *size)
{
	uint64_t next = first, end = ranges[first].vaddr;

	do {
		if (__builtin_add_overflow(end, ranges[next].size, &end))
			return 0;
		next++;
	} while (next < count && ranges[next].vaddr == end);
	*size = end - ranges[first].vaddr;
	return next - first;
}

int64_t vt_ranges_lay_out(struct vt_range *ranges, uint64_t count, uint64_t iova, uint64_t align)
{
	uint64_t at = 0, cursor = iova, length, size;

	if (!is_ordered(ranges, count))
		qsort(ranges, count, sizeof(*ranges), by_vaddr);
	for (; at < count; at += length) {
		length = piece(ranges, at, count, &size);
		if (!length)
			return -EOVERFLOW;
		if (size >= align)
			cursor += (ranges[at].vaddr - cursor) & (align - 1);
		for (uint64_t n = at; n < at + length; n++) {
			ranges[n].iova = cursor;
			if (__builtin_add_overflow(cursor, ranges[n].size, &cursor))
				return -EOVERFLOW;
		}
	}
	return cursor - iova > INT64_MAX ? -EOVERFLOW : (int64_t)(cursor - iova);
}

/* Find the range that cannot be mapped in a run [first, end) that the kernel refused. */
static uint64_t find_failing(int fd, uint32_t ioas, const struct vt_range *ranges, uint64_t first,
			     uint64_t end, uint32_t flags)
{
	uint64_t at = first;

	while (at < end && map(fd, ioas, &ranges[at], flags) == 0)
		at++;
	for (uint64_t mapped = first; mapped < at; mapped++)
		vt_dma_unmap(fd, ioas, ranges[mapped].iova, ranges[mapped].size);
	return at < end ? at : first; /* each range alone can be mapped: the run as a whole failed */
}

int64_t vt_dma_map_ranges(int fd, uint32_t ioas, const struct vt_range *ranges, uint64_t count,
			  uint32_t flags, uint64_t *failed)
{
	struct vt_range run;
	uint64_t at = 0, next;
	int64_t runs = 0;
	int result;

	for (; at < count; at = next, runs++) {
		next = next_run(ranges, at, count, continues, &run);
		result = map(fd, ioas, &run, flags);
		if (result < 0) {
			vt_dma_unmap_ranges(fd, ioas, ranges, at);
			*failed = next == at + 1 ? at :
				  find_failing(fd, ioas, ranges, at, next, flags);
			return result;
		}
	}
	return runs;
}

int64_t vt_dma_unmap_ranges(int fd, uint32_t ioas, const struct vt_range *ranges, uint64_t count)
{
	int64_t bytes = 0, first_error = 0, result;
	struct vt_range span;
	uint64_t at = 0;

	while (at < count) {
		at = next_run(ranges, at, count, is_next, &span);
		result = vt_dma_unmap(fd, ioas, span.iova, span.size);
		if (result >= 0)
			bytes += result;
		else if (!first_error)
			first_error = result;
	}
	return first_error ? first_error : bytes;
}
