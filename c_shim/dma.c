/* SPDX-License-Identifier: Apache-2.0 */
#include "dma.h"

#include <linux/vfio.h>

#include "call.h"

int vt_dma_map(int container, uint64_t vaddr, uint64_t iova, uint64_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = flags,
		.vaddr = vaddr,
		.iova = iova,
		.size = size,
	};

	return vt_call(container, VFIO_IOMMU_MAP_DMA, (unsigned long)&map);
}

int64_t vt_dma_unmap(int container, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.iova = iova,
		.size = size,
	};
	int result = vt_call(container, VFIO_IOMMU_UNMAP_DMA, (unsigned long)&unmap);

	return result < 0 ? result : (int64_t)unmap.size;
}
