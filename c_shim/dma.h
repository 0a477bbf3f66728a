/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that the devices of an IO address space may reach.
 *
 * An address space is a container's fd with an `ioas` of 0, or an iommufd with the id of an IOAS, which
 * is never 0. `flags` are VFIO_DMA_MAP_FLAG_* for both.
 */
#ifndef VFIOTOOL_DMA_H
#define VFIOTOOL_DMA_H

#include <stdint.h>

/* declarations */

/* `size` bytes of memory at `vaddr`, to be reached at `iova`. */
struct vt_range {
	uint64_t vaddr;
	uint64_t iova;
	uint64_t size;
};

/* Map `size` bytes at `vaddr`. */
int vt_dma_map(int fd, uint32_t ioas, uint64_t vaddr, uint64_t iova, uint64_t size, uint32_t flags);

/* Undo the mappings inside a range; returns how many bytes were mapped there. */
int64_t vt_dma_unmap(int fd, uint32_t ioas, uint64_t iova, uint64_t size);

/* Undo all mappings (type1: since 5.12); returns how many bytes were mapped. */
int64_t vt_dma_unmap_all(int fd, uint32_t ioas);

/*
 * Join neighbours: ranges that follow each other in vaddr and in iova become one run, in their order.
 * Writes the runs, for as many of which as there are ranges there must be room; returns how many they are.
 */
int64_t vt_ranges_merge(const struct vt_range *ranges, uint64_t count, struct vt_range *runs);

/* The same for ranges that follow each other in iova alone; the vaddr of a span means nothing. */
int64_t vt_ranges_spans(const struct vt_range *ranges, uint64_t count, struct vt_range *spans);

/* Return how many bytes they are together, or -EOVERFLOW. */
int64_t vt_ranges_size(const struct vt_range *ranges, uint64_t count);

/* Describe `count` pieces of memory of one size; their `iova` is for vt_ranges_lay_out to give. */
void vt_ranges_fill(struct vt_range *ranges, const uint64_t *vaddrs, uint64_t count, uint64_t size);

/*
 * Order ranges by vaddr and give them IOVAs from `iova` on, so that neighbours in memory stay neighbours.
 * A run of at least `align` bytes (a power of two, of which `iova` is a multiple) starts where its iova
 * and its vaddr are congruent modulo `align`, as large page table entries need it. Returns how many bytes
 * of IOVA space that takes, or -EOVERFLOW.
 */
int64_t vt_ranges_lay_out(struct vt_range *ranges, uint64_t count, uint64_t iova, uint64_t align);

/*
 * Map all ranges or none, each run of neighbours by one call to the kernel; returns how many runs.
 * On failure nothing of them stays mapped, and `failed` is the index of the range that failed.
 */
int64_t vt_dma_map_ranges(int fd, uint32_t ioas, const struct vt_range *ranges, uint64_t count,
			  uint32_t flags, uint64_t *failed);

/*
 * Undo what vt_dma_map_ranges did, runs that follow each other in iova by one call to the kernel.
 * Returns how many bytes were mapped. It goes on after a failure, and then returns the first errno.
 */
int64_t vt_dma_unmap_ranges(int fd, uint32_t ioas, const struct vt_range *ranges, uint64_t count);

/* end of declarations */

#endif
