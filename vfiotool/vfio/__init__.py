"""Drive a device through VFIO: containers, groups, devices, and the memory that they may reach.

Names are the kernel's own (Documentation/driver-api/vfio.rst).
"""

from vfiotool.vfio.container import Container
from vfiotool.vfio.device_file import KernelDeviceFile
from vfiotool.vfio.group import Group
from vfiotool.vfio.info import DeviceInfo, IovaRange, IrqInfo, MmapArea, RegionInfo, Type1Info
from vfiotool.vfio.uapi import Extension, GroupFlags, IommuType

__all__ = [
    "Container",
    "DeviceInfo",
    "Extension",
    "Group",
    "GroupFlags",
    "IommuType",
    "IovaRange",
    "IrqInfo",
    "KernelDeviceFile",
    "MmapArea",
    "RegionInfo",
    "Type1Info",
]
