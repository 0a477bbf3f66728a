/* SPDX-License-Identifier: Apache-2.0 */
/* The iommufd ioctls of the shim, for systems whose headers are older than <linux/iommufd.h> (6.2). */
#ifndef VFIOTOOL_IOMMUFD_ABI_H
#define VFIOTOOL_IOMMUFD_ABI_H

#if __has_include(<linux/iommufd.h>)
#include <linux/iommufd.h>
#else
#include <linux/ioctl.h>
#include <linux/types.h>

#define IOMMU_IOAS_MAP _IO(';', 0x85)
#define IOMMU_IOAS_UNMAP _IO(';', 0x86)

enum {
	IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0,
	IOMMU_IOAS_MAP_WRITEABLE = 1 << 1,
	IOMMU_IOAS_MAP_READABLE = 1 << 2,
};

struct iommu_ioas_map {
	__u32 size;
	__u32 flags;
	__u32 ioas_id;
	__u32 __reserved;
	__aligned_u64 user_va;
	__aligned_u64 length;
	__aligned_u64 iova;
};

struct iommu_ioas_unmap {
	__u32 size;
	__u32 ioas_id;
	__aligned_u64 iova;
	__aligned_u64 length;
};
#endif

#endif
