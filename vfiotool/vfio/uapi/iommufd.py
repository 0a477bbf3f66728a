# ruff: noqa: N801 - a structure has the kernel's own name, so that one search finds both
"""iommufd: IO address spaces without containers and groups.

Source: <linux/iommufd.h>, and <linux/vfio.h> for the ioctls of a device's cdev (both since 6.6).
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

__all__ = [
    "IoasMapFlags",
    "IommuOption",
    "IommuOptionOp",
    "IommufdIoctl",
    "iommu_destroy",
    "iommu_ioas_alloc",
    "iommu_ioas_allow_iovas",
    "iommu_ioas_copy",
    "iommu_ioas_iova_ranges",
    "iommu_ioas_map",
    "iommu_ioas_map_file",
    "iommu_ioas_unmap",
    "iommu_iova_range",
    "iommu_option",
]

_TYPE = ord(";")


def _io(number: int) -> int:
    """Return _IO(IOMMUFD_TYPE, IOMMUFD_CMD_…): neither direction nor size is encoded."""
    return _TYPE << 8 | number


class IommufdIoctl(IntEnum):
    """Ioctls of an iommufd."""

    IOMMU_DESTROY = _io(0x80)
    IOMMU_IOAS_ALLOC = _io(0x81)
    IOMMU_IOAS_ALLOW_IOVAS = _io(0x82)
    IOMMU_IOAS_COPY = _io(0x83)
    IOMMU_IOAS_IOVA_RANGES = _io(0x84)
    IOMMU_IOAS_MAP = _io(0x85)
    IOMMU_IOAS_UNMAP = _io(0x86)
    IOMMU_OPTION = _io(0x87)
    IOMMU_IOAS_MAP_FILE = _io(0x8F)


class IoasMapFlags(IntFlag):
    """IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE and IOMMU_IOAS_COPY."""

    FIXED_IOVA = 1 << 0
    WRITEABLE = 1 << 1
    READABLE = 1 << 2


class IommuOption(IntEnum):
    """IOMMU_OPTION: the option."""

    RLIMIT_MODE = 0
    HUGE_PAGES = 1


class IommuOptionOp(IntEnum):
    """IOMMU_OPTION: the operation on the option."""

    SET = 0
    GET = 1


class iommu_destroy(Structure):
    """IOMMU_DESTROY."""

    _fields_ = (("size", c_uint32), ("id", c_uint32))


class iommu_ioas_alloc(Structure):
    """IOMMU_IOAS_ALLOC."""

    _fields_ = (("size", c_uint32), ("flags", c_uint32), ("out_ioas_id", c_uint32))


class iommu_iova_range(Structure):
    """IOVAs, both ends included."""

    _fields_ = (("start", c_uint64), ("last", c_uint64))


class iommu_ioas_iova_ranges(Structure):
    """IOMMU_IOAS_IOVA_RANGES; ``allowed_iovas`` points to ``num_iovas`` ranges."""

    _fields_ = (
        ("size", c_uint32),
        ("ioas_id", c_uint32),
        ("num_iovas", c_uint32),
        ("__reserved", c_uint32),
        ("allowed_iovas", c_uint64),
        ("out_iova_alignment", c_uint64),
    )


class iommu_ioas_allow_iovas(Structure):
    """IOMMU_IOAS_ALLOW_IOVAS; ``allowed_iovas`` points to ``num_iovas`` ranges."""

    _fields_ = (
        ("size", c_uint32),
        ("ioas_id", c_uint32),
        ("num_iovas", c_uint32),
        ("__reserved", c_uint32),
        ("allowed_iovas", c_uint64),
    )


class iommu_ioas_map(Structure):
    """IOMMU_IOAS_MAP."""

    _fields_ = (
        ("size", c_uint32),
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("__reserved", c_uint32),
        ("user_va", c_uint64),
        ("length", c_uint64),
        ("iova", c_uint64),
    )


class iommu_ioas_map_file(Structure):
    """IOMMU_IOAS_MAP_FILE (since 6.14): memory of a file, usually a memfd."""

    _fields_ = (
        ("size", c_uint32),
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("fd", c_int32),
        ("start", c_uint64),
        ("length", c_uint64),
        ("iova", c_uint64),
    )


class iommu_ioas_copy(Structure):
    """IOMMU_IOAS_COPY."""

    _fields_ = (
        ("size", c_uint32),
        ("flags", c_uint32),
        ("dst_ioas_id", c_uint32),
        ("src_ioas_id", c_uint32),
        ("length", c_uint64),
        ("dst_iova", c_uint64),
        ("src_iova", c_uint64),
    )


class iommu_ioas_unmap(Structure):
    """IOMMU_IOAS_UNMAP; the kernel writes the number of unmapped bytes to ``length``."""

    _fields_ = (("size", c_uint32), ("ioas_id", c_uint32), ("iova", c_uint64), ("length", c_uint64))


class iommu_option(Structure):
    """IOMMU_OPTION."""

    _fields_ = (
        ("size", c_uint32),
        ("option_id", c_uint32),
        ("op", c_uint16),
        ("__reserved", c_uint16),
        ("object_id", c_uint32),
        ("val64", c_uint64),
    )
