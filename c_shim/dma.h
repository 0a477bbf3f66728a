/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that the devices of a container may reach. */
#ifndef VFIOTOOL_DMA_H
#define VFIOTOOL_DMA_H

#include <stdint.h>

/* declarations */

/* Map `size` bytes at `vaddr` for the devices of a container; `flags` are VFIO_DMA_MAP_FLAG_*. */
int vt_dma_map(int container, uint64_t vaddr, uint64_t iova, uint64_t size, uint32_t flags);

/* Undo the mappings inside a range; returns how many bytes were mapped there. */
int64_t vt_dma_unmap(int container, uint64_t iova, uint64_t size);

/* end of declarations */

#endif
