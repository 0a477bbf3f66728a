"""IO address spaces: a protocol, and a backend for each of the kernel's interfaces."""

from vfiotool.vfio.iommu.protocol import Iommu, IommuInfo, IommuMode
from vfiotool.vfio.iommu.selection import offered_modes, open_iommu

__all__ = ["Iommu", "IommuInfo", "IommuMode", "offered_modes", "open_iommu"]
