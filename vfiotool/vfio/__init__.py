"""Drive a device through VFIO: its registers, DMA memory, interrupts and resets.

Names are the kernel's own (Documentation/driver-api/vfio.rst, Documentation/userspace-api/iommufd.rst).
A driver starts with ``open_device``; the other names are the parts of an open device.
"""

from vfiotool.vfio.container import Container
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.device_file import DeviceFile, KernelDeviceFile
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.dma.mapping import Batch, Buffer, Mapping
from vfiotool.vfio.dma.memory import Memory, PageKind
from vfiotool.vfio.group import Group
from vfiotool.vfio.info import DeviceInfo, IovaRange, IrqInfo, MmapArea, RegionInfo, Type1Info
from vfiotool.vfio.iommu import Iommu, IommuInfo, IommuMode, offered_modes, open_iommu
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.regions.register_space import RegisterSpace
from vfiotool.vfio.uapi import DeviceFeature, Extension, GroupFlags, IommuType, PciIrq, PciRegion

__all__ = [
    "Batch",
    "Buffer",
    "Container",
    "Device",
    "DeviceFeature",
    "DeviceFile",
    "DeviceInfo",
    "Dma",
    "Extension",
    "Group",
    "GroupFlags",
    "Iommu",
    "IommuInfo",
    "IommuMode",
    "IommuType",
    "IovaRange",
    "IrqInfo",
    "KernelDeviceFile",
    "Mapping",
    "Memory",
    "MmapArea",
    "Mmio",
    "PageKind",
    "PciIrq",
    "PciRegion",
    "Ranges",
    "RegionInfo",
    "RegisterSpace",
    "Type1Info",
    "offered_modes",
    "open_device",
    "open_iommu",
]
