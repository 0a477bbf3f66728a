/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DMA mappings of an IO address space.
 *
 * An address space is a container's fd with `ioas` 0, or an iommufd with the id of an IOAS, which is
 * never 0. `flags` are VFIO_DMA_MAP_FLAG_* for both.
 */
#ifndef VFIOTOOL_DMA_H
#define VFIOTOOL_DMA_H

#include <stdint.h>

/* declarations */

/* `size` bytes of memory at `vaddr`, mapped to `iova`. */
struct vt_range {
	uint64_t vaddr;
	uint64_t iova;
	uint64_t size;
};

/* Map `size` bytes at `vaddr`. */
int vt_dma_map(int fd, uint32_t ioas, uint64_t vaddr, uint64_t iova, uint64_t size, uint32_t flags);

/* Remove the mappings inside a range; returns how many bytes were mapped there. */
int64_t vt_dma_unmap(int fd, uint32_t ioas, uint64_t iova, uint64_t size);

/* Remove all mappings (type1: since 5.12); returns how many bytes were mapped. */
int64_t vt_dma_unmap_all(int fd, uint32_t ioas);

/*
 * Join ranges that are adjacent in vaddr and in iova into runs, in their order. `runs` must have room
 * for `count` runs; returns the number of runs.
 */
int64_t vt_ranges_merge(const struct vt_range *ranges, uint64_t count, struct vt_range *runs);

/* The same for ranges that are adjacent in iova alone; the vaddr of a span has no meaning. */
int64_t vt_ranges_spans(const struct vt_range *ranges, uint64_t count, struct vt_range *spans);

/* Return the total number of bytes, or -EOVERFLOW. */
int64_t vt_ranges_size(const struct vt_range *ranges, uint64_t count);

/* Describe `count` pieces of memory of one size; vt_ranges_lay_out sets their `iova`. */
void vt_ranges_fill(struct vt_range *ranges, const uint64_t *vaddrs, uint64_t count, uint64_t size);

/*
 * Sort ranges by vaddr and set their IOVAs, from `iova` on. Ranges that are adjacent in memory are then
 * adjacent in iova. `align` is a power of two, and `iova` a multiple of it. A run of at least `align` bytes
 * starts at an iova that is congruent to its vaddr modulo `align`, as large page table entries need it.
 * Returns how many bytes of IOVA space the ranges take, or -EOVERFLOW.
 */
int64_t vt_ranges_lay_out(struct vt_range *ranges, uint64_t count, uint64_t iova, uint64_t align);

/*
 * Map all ranges or none, each run of adjacent ranges by one ioctl; returns the number of runs.
 * On failure none of them stays mapped, and `failed` is the index of the range that failed.
 */
int64_t vt_dma_map_ranges(int fd, uint32_t ioas, const struct vt_range *ranges, uint64_t count,
			  uint32_t flags, uint64_t *failed);

/*
 * Remove the mappings of vt_dma_map_ranges, runs that are adjacent in iova by one ioctl. Returns how
 * many bytes were mapped. It continues after a failure, and then returns the first errno.
 */
int64_t vt_dma_unmap_ranges(int fd, uint32_t ioas, const struct vt_range *ranges, uint64_t count);

/* end of declarations */

#endif
