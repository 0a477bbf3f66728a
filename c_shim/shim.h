/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VFIO calls whose result must be exact: the group and container life cycle, and DMA mapping.
 *
 * Every function returns a value >= 0, or -errno. None keeps state, allocates or prints, so any
 * thread may call any of them at any time; cffi releases the GIL around each call. What they open
 * is close-on-exec. A call that a signal interrupts (EINTR) is made again.
 *
 * build_shim.py reads what stands between the two markers, which has no preprocessor lines.
 */
#ifndef VFIOTOOL_SHIM_H
#define VFIOTOOL_SHIM_H

#include <stdint.h>

/* declarations */

/* Open the container node (/dev/vfio/vfio) or a group node (/dev/vfio/N); returns a fd. */
int vt_open(const char *path);

/* Return the container's API version; VFIO_API_VERSION is the only one there is. */
int vt_container_api_version(int container);

/* Return what VFIO_CHECK_EXTENSION says: 0 for "no", a positive number for "yes". */
int vt_container_check_extension(int container, int extension);

/* Choose the IOMMU driver of a container that has a group. */
int vt_container_set_iommu(int container, int iommu);

/* Return the group's VFIO_GROUP_FLAGS_*. */
int vt_group_status(int group);

int vt_group_set_container(int group, int container);
int vt_group_unset_container(int group);

/* Return a fd for the device of that name (a PCI address, perhaps with a VF token). */
int vt_group_device_fd(int group, const char *name);

/* Map `size` bytes at `vaddr` for the devices of a container; `flags` are VFIO_DMA_MAP_FLAG_*. */
int vt_dma_map(int container, uint64_t vaddr, uint64_t iova, uint64_t size, uint32_t flags);

/* Undo the mappings inside a range; returns how many bytes were mapped there. */
int64_t vt_dma_unmap(int container, uint64_t iova, uint64_t size);

/* end of declarations */

#endif
