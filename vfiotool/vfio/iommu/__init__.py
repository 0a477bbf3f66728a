"""IO address spaces: one protocol, and behind it the kernel's interfaces that make them."""

from vfiotool.vfio.iommu.protocol import Iommu, IommuInfo, IommuMode
from vfiotool.vfio.iommu.selection import offered_modes, open_iommu

__all__ = ["Iommu", "IommuInfo", "IommuMode", "offered_modes", "open_iommu"]
