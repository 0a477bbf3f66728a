# ruff: noqa: N801 - a structure has the kernel's own name, so that one search finds both
"""VFIO: containers, groups and devices.

Source: <linux/vfio.h>. Structures that end in a flexible array are described without it.
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

__all__ = [
    "VFIO_API_VERSION",
    "AtomicCompFlags",
    "BindFlags",
    "ContainerIoctl",
    "DeviceFeature",
    "DeviceFeatureFlags",
    "DeviceInfoCap",
    "DeviceInfoFlags",
    "DeviceIoctl",
    "DmaMapFlags",
    "DmaUnmapFlags",
    "Extension",
    "GroupFlags",
    "GroupIoctl",
    "HotResetInfoFlags",
    "IommuType",
    "IrqInfoFlags",
    "IrqSetFlags",
    "PciIrq",
    "PciRegion",
    "RegionInfoCap",
    "RegionInfoFlags",
    "Type1InfoCap",
    "Type1InfoFlags",
    "vfio_device_attach_iommufd_pt",
    "vfio_device_bind_iommufd",
    "vfio_device_detach_iommufd_pt",
    "vfio_device_feature",
    "vfio_device_feature_dma_buf",
    "vfio_device_info",
    "vfio_device_info_cap_pci_atomic_comp",
    "vfio_device_low_power_entry_with_wakeup",
    "vfio_group_status",
    "vfio_info_cap_header",
    "vfio_iommu_type1_dma_map",
    "vfio_iommu_type1_dma_unmap",
    "vfio_iommu_type1_info",
    "vfio_iommu_type1_info_cap_iova_range",
    "vfio_iommu_type1_info_cap_migration",
    "vfio_iommu_type1_info_dma_avail",
    "vfio_iova_range",
    "vfio_irq_info",
    "vfio_irq_set",
    "vfio_pci_dependent_device",
    "vfio_pci_hot_reset",
    "vfio_pci_hot_reset_info",
    "vfio_region_dma_range",
    "vfio_region_info",
    "vfio_region_info_cap_sparse_mmap",
    "vfio_region_info_cap_type",
    "vfio_region_sparse_mmap_area",
]

VFIO_API_VERSION = 0

_TYPE = ord(";")
_BASE = 100


def _io(number: int) -> int:
    """Return _IO(VFIO_TYPE, VFIO_BASE + number): VFIO encodes neither direction nor size."""
    return _TYPE << 8 | (_BASE + number)


class ContainerIoctl(IntEnum):
    """Ioctls of a container."""

    VFIO_GET_API_VERSION = _io(0)
    VFIO_CHECK_EXTENSION = _io(1)
    VFIO_SET_IOMMU = _io(2)
    VFIO_IOMMU_GET_INFO = _io(12)
    VFIO_IOMMU_MAP_DMA = _io(13)
    VFIO_IOMMU_UNMAP_DMA = _io(14)


class GroupIoctl(IntEnum):
    """Ioctls of a group."""

    VFIO_GROUP_GET_STATUS = _io(3)
    VFIO_GROUP_SET_CONTAINER = _io(4)
    VFIO_GROUP_UNSET_CONTAINER = _io(5)
    VFIO_GROUP_GET_DEVICE_FD = _io(6)


class DeviceIoctl(IntEnum):
    """Ioctls of a device; some numbers are other ioctls of a container."""

    VFIO_DEVICE_GET_INFO = _io(7)
    VFIO_DEVICE_GET_REGION_INFO = _io(8)
    VFIO_DEVICE_GET_IRQ_INFO = _io(9)
    VFIO_DEVICE_SET_IRQS = _io(10)
    VFIO_DEVICE_RESET = _io(11)
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = _io(12)
    VFIO_DEVICE_PCI_HOT_RESET = _io(13)
    VFIO_DEVICE_FEATURE = _io(17)
    VFIO_DEVICE_BIND_IOMMUFD = _io(18)
    VFIO_DEVICE_ATTACH_IOMMUFD_PT = _io(19)
    VFIO_DEVICE_DETACH_IOMMUFD_PT = _io(20)


class IommuType(IntEnum):
    """IOMMU models, for VFIO_SET_IOMMU (and, as extensions, for VFIO_CHECK_EXTENSION)."""

    TYPE1 = 1
    TYPE1v2 = 3
    NOIOMMU = 8


class Extension(IntEnum):
    """Other extensions, for VFIO_CHECK_EXTENSION."""

    DMA_CC_IOMMU = 4
    UNMAP_ALL = 9
    UPDATE_VADDR = 10


class GroupFlags(IntFlag):
    """VFIO_GROUP_GET_STATUS."""

    VIABLE = 1 << 0
    CONTAINER_SET = 1 << 1


class DeviceInfoFlags(IntFlag):
    """VFIO_DEVICE_GET_INFO."""

    RESET = 1 << 0
    PCI = 1 << 1
    CAPS = 1 << 7


class RegionInfoFlags(IntFlag):
    """VFIO_DEVICE_GET_REGION_INFO."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class IrqInfoFlags(IntFlag):
    """VFIO_DEVICE_GET_IRQ_INFO."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqSetFlags(IntFlag):
    """VFIO_DEVICE_SET_IRQS: one DATA and one ACTION."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


class HotResetInfoFlags(IntFlag):
    """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO (flags since 6.6)."""

    DEV_ID = 1 << 0
    DEV_ID_OWNED = 1 << 1


class BindFlags(IntFlag):
    """VFIO_DEVICE_BIND_IOMMUFD (since 6.18)."""

    TOKEN = 1 << 0


class DeviceFeatureFlags(IntFlag):
    """VFIO_DEVICE_FEATURE: the operation on the feature whose number is in the low 16 bits."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


class DeviceFeature(IntEnum):
    """Feature numbers of VFIO_DEVICE_FEATURE."""

    PCI_VF_TOKEN = 0
    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    LOW_POWER_ENTRY = 3
    LOW_POWER_ENTRY_WITH_WAKEUP = 4
    LOW_POWER_EXIT = 5
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9
    BUS_MASTER = 10
    DMA_BUF = 11


class AtomicCompFlags(IntFlag):
    """PCI_ATOMIC_COMP: widths of the atomic operations that the root complex completes."""

    ATOMIC_COMP32 = 1 << 0
    ATOMIC_COMP64 = 1 << 1
    ATOMIC_COMP128 = 1 << 2


class Type1InfoFlags(IntFlag):
    """VFIO_IOMMU_GET_INFO."""

    PGSIZES = 1 << 0
    CAPS = 1 << 1


class DmaMapFlags(IntFlag):
    """VFIO_IOMMU_MAP_DMA: the rights of the device."""

    READ = 1 << 0
    WRITE = 1 << 1


class DmaUnmapFlags(IntFlag):
    """VFIO_IOMMU_UNMAP_DMA."""

    ALL = 1 << 1


class PciRegion(IntEnum):
    """Region indexes of a vfio-pci device; a TYPE capability describes regions with higher indexes."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class PciIrq(IntEnum):
    """Interrupt indexes of a vfio-pci device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class DeviceInfoCap(IntEnum):
    """Capability ids of VFIO_DEVICE_GET_INFO."""

    PCI_ATOMIC_COMP = 5


class RegionInfoCap(IntEnum):
    """Capability ids of VFIO_DEVICE_GET_REGION_INFO."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3


class Type1InfoCap(IntEnum):
    """Capability ids of VFIO_IOMMU_GET_INFO."""

    IOVA_RANGE = 1
    MIGRATION = 2
    DMA_AVAIL = 3


class vfio_info_cap_header(Structure):
    """Header of every capability; ``next`` counts from the start of the whole reply, 0 ends the chain."""

    _fields_ = (("id", c_uint16), ("version", c_uint16), ("next", c_uint32))


class vfio_group_status(Structure):
    """VFIO_GROUP_GET_STATUS."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


class vfio_device_info(Structure):
    """VFIO_DEVICE_GET_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
        ("cap_offset", c_uint32),
    )


class vfio_device_info_cap_pci_atomic_comp(Structure):
    """PCI_ATOMIC_COMP (since 6.6)."""

    _fields_ = (("header", vfio_info_cap_header), ("flags", c_uint32), ("reserved", c_uint32))


class vfio_region_info(Structure):
    """VFIO_DEVICE_GET_REGION_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )


class vfio_region_sparse_mmap_area(Structure):
    """A mappable part of a region; bytes from the region's start."""

    _fields_ = (("offset", c_uint64), ("size", c_uint64))


class vfio_region_info_cap_sparse_mmap(Structure):
    """SPARSE_MMAP; ``nr_areas`` areas follow."""

    _fields_ = (("header", vfio_info_cap_header), ("nr_areas", c_uint32), ("reserved", c_uint32))


class vfio_region_info_cap_type(Structure):
    """TYPE: the type of a device-specific region."""

    _fields_ = (("header", vfio_info_cap_header), ("type", c_uint32), ("subtype", c_uint32))


class vfio_irq_info(Structure):
    """VFIO_DEVICE_GET_IRQ_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("count", c_uint32),
    )


class vfio_irq_set(Structure):
    """VFIO_DEVICE_SET_IRQS; ``count`` data items follow."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )


class vfio_pci_dependent_device(Structure):
    """A device that a hot reset also resets."""

    _fields_ = (
        ("group_id", c_uint32),
        ("segment", c_uint16),
        ("bus", c_uint8),
        ("devfn", c_uint8),
    )


class vfio_pci_hot_reset_info(Structure):
    """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO; ``count`` dependent devices follow."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("count", c_uint32))


class vfio_pci_hot_reset(Structure):
    """VFIO_DEVICE_PCI_HOT_RESET; ``count`` group fds (s32) follow."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("count", c_uint32))


class vfio_device_feature(Structure):
    """VFIO_DEVICE_FEATURE; the data of the feature follow."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


class vfio_iommu_type1_info(Structure):
    """VFIO_IOMMU_GET_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova_pgsizes", c_uint64),
        ("cap_offset", c_uint32),
    )


class vfio_iova_range(Structure):
    """IOVAs that can be mapped, both ends included."""

    _fields_ = (("start", c_uint64), ("end", c_uint64))


class vfio_iommu_type1_info_cap_iova_range(Structure):
    """IOVA_RANGE; ``nr_iovas`` ranges follow."""

    _fields_ = (("header", vfio_info_cap_header), ("nr_iovas", c_uint32), ("reserved", c_uint32))


class vfio_iommu_type1_info_cap_migration(Structure):
    """MIGRATION: dirty page tracking of the container."""

    _fields_ = (
        ("header", vfio_info_cap_header),
        ("flags", c_uint32),
        ("pgsize_bitmap", c_uint64),
        ("max_dirty_bitmap_size", c_uint64),
    )


class vfio_iommu_type1_info_dma_avail(Structure):
    """DMA_AVAIL: how many more mappings the container accepts."""

    _fields_ = (("header", vfio_info_cap_header), ("avail", c_uint32))


class vfio_iommu_type1_dma_map(Structure):
    """VFIO_IOMMU_MAP_DMA."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class vfio_iommu_type1_dma_unmap(Structure):
    """VFIO_IOMMU_UNMAP_DMA; the kernel writes the number of unmapped bytes to ``size``."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class vfio_device_low_power_entry_with_wakeup(Structure):
    """LOW_POWER_ENTRY_WITH_WAKEUP (since 6.1): ``wakeup_eventfd`` is signalled when the device wakes."""

    _fields_ = (("wakeup_eventfd", c_int32), ("reserved", c_uint32))


class vfio_region_dma_range(Structure):
    """A part of a region; bytes from the region's start."""

    _fields_ = (("offset", c_uint64), ("length", c_uint64))


class vfio_device_feature_dma_buf(Structure):
    """DMA_BUF (since 6.19); ``nr_ranges`` ranges follow. The ioctl returns the descriptor."""

    _fields_ = (
        ("region_index", c_uint32),
        ("open_flags", c_uint32),
        ("flags", c_uint32),
        ("nr_ranges", c_uint32),
    )


class vfio_device_bind_iommufd(Structure):
    """VFIO_DEVICE_BIND_IOMMUFD (since 6.6); ``token_uuid_ptr`` (since 6.18) points to 16 bytes."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
        ("token_uuid_ptr", c_uint64),
    )


class vfio_device_attach_iommufd_pt(Structure):
    """VFIO_DEVICE_ATTACH_IOMMUFD_PT (since 6.6): ``pt_id`` is an IOAS or a page table."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("pt_id", c_uint32))


class vfio_device_detach_iommufd_pt(Structure):
    """VFIO_DEVICE_DETACH_IOMMUFD_PT (since 6.6)."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))
