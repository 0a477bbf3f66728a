"""Frozen snapshots of a device's and a container's info, parsed from the kernel's replies."""

from __future__ import annotations

from ctypes import sizeof
from dataclasses import dataclass

from vfiotool.vfio.info_ioctl import InfoReply
from vfiotool.vfio.uapi import (
    AtomicCompFlags,
    DeviceInfoCap,
    DeviceInfoFlags,
    IrqInfoFlags,
    RegionInfoCap,
    RegionInfoFlags,
    Type1InfoCap,
    Type1InfoFlags,
    vfio_device_info,
    vfio_device_info_cap_pci_atomic_comp,
    vfio_iommu_type1_info,
    vfio_iommu_type1_info_cap_iova_range,
    vfio_iommu_type1_info_dma_avail,
    vfio_iova_range,
    vfio_irq_info,
    vfio_region_info,
    vfio_region_info_cap_sparse_mmap,
    vfio_region_info_cap_type,
    vfio_region_sparse_mmap_area,
)

# vfio-pci has 9 regions and the device-specific regions; no driver comes near this limit.
_MAX_INDEXES = 4096


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """VFIO_DEVICE_GET_INFO. ``atomic_comp`` is ``None`` if the kernel does not report it (< 6.6)."""

    flags: DeviceInfoFlags
    num_regions: int
    num_irqs: int
    atomic_comp: AtomicCompFlags | None


@dataclass(frozen=True, slots=True)
class MmapArea:
    """A part of a region that can be mapped: offset from the region's start, and size, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """VFIO_DEVICE_GET_REGION_INFO: ``size`` bytes at ``offset`` of the device's fd.

    ``mmap_areas`` is the whole region if the kernel names no areas, and empty if the region cannot be
    mapped. ``type`` is the (type, subtype) of a device-specific region.
    """

    index: int
    flags: RegionInfoFlags
    size: int
    offset: int
    mmap_areas: tuple[MmapArea, ...]
    type: tuple[int, int] | None
    msix_mappable: bool


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """VFIO_DEVICE_GET_IRQ_INFO: the index has ``count`` interrupts."""

    index: int
    flags: IrqInfoFlags
    count: int


@dataclass(frozen=True, slots=True)
class IovaRange:
    """IO virtual addresses that can be mapped, both ends included."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Type1Info:
    """VFIO_IOMMU_GET_INFO of a type1 container.

    ``page_sizes`` is a bitmap, in bytes. ``iova_ranges`` and ``dma_avail`` (how many more mappings
    the container accepts) are ``None`` if the kernel does not report them; ``dma_avail`` exists since 5.10.
    """

    page_sizes: int
    iova_ranges: tuple[IovaRange, ...] | None
    dma_avail: int | None


def parse_device_info(answer: InfoReply) -> DeviceInfo:
    """Parse the reply to VFIO_DEVICE_GET_INFO.

    Raises:
        KernelError: EBADMSG, the reply breaks the kernel's own format.
    """
    info = answer.read(vfio_device_info)
    flags = DeviceInfoFlags(info.flags)
    if max(info.num_regions, info.num_irqs) > _MAX_INDEXES:
        raise answer.malformed(f"{info.num_regions} regions and {info.num_irqs} interrupt indexes")
    atomic_comp = None
    if DeviceInfoFlags.CAPS in flags:
        at = answer.capabilities(info.cap_offset).get(DeviceInfoCap.PCI_ATOMIC_COMP)
        if at is not None:
            cap = answer.read(vfio_device_info_cap_pci_atomic_comp, at)
            atomic_comp = AtomicCompFlags(cap.flags)
    return DeviceInfo(flags, info.num_regions, info.num_irqs, atomic_comp)


def parse_region_info(answer: InfoReply) -> RegionInfo:
    """Parse the reply to VFIO_DEVICE_GET_REGION_INFO.

    Raises:
        KernelError: EBADMSG, the reply breaks the kernel's own format.
    """
    info = answer.read(vfio_region_info)
    flags = RegionInfoFlags(info.flags)
    caps = answer.capabilities(info.cap_offset) if RegionInfoFlags.CAPS in flags else {}
    kind = None
    if RegionInfoCap.TYPE in caps:
        cap = answer.read(vfio_region_info_cap_type, caps[RegionInfoCap.TYPE])
        kind = (cap.type, cap.subtype)
    return RegionInfo(
        index=info.index,
        flags=flags,
        size=info.size,
        offset=info.offset,
        mmap_areas=_mmap_areas(answer, flags, info.size, caps.get(RegionInfoCap.SPARSE_MMAP)),
        type=kind,
        msix_mappable=RegionInfoCap.MSIX_MAPPABLE in caps,
    )


def parse_irq_info(answer: InfoReply) -> IrqInfo:
    """Parse the reply to VFIO_DEVICE_GET_IRQ_INFO."""
    info = answer.read(vfio_irq_info)
    return IrqInfo(info.index, IrqInfoFlags(info.flags), info.count)


def parse_type1_info(answer: InfoReply) -> Type1Info:
    """Parse the reply to VFIO_IOMMU_GET_INFO.

    Raises:
        KernelError: EBADMSG, the reply breaks the kernel's own format.
    """
    info = answer.read(vfio_iommu_type1_info)
    flags = Type1InfoFlags(info.flags)
    caps = answer.capabilities(info.cap_offset) if Type1InfoFlags.CAPS in flags else {}
    dma_avail = None
    if Type1InfoCap.DMA_AVAIL in caps:
        cap = answer.read(vfio_iommu_type1_info_dma_avail, caps[Type1InfoCap.DMA_AVAIL])
        dma_avail = cap.avail
    return Type1Info(
        page_sizes=info.iova_pgsizes if Type1InfoFlags.PGSIZES in flags else 0,
        iova_ranges=_iova_ranges(answer, caps.get(Type1InfoCap.IOVA_RANGE)),
        dma_avail=dma_avail,
    )


def _mmap_areas(
    answer: InfoReply, flags: RegionInfoFlags, region_size: int, sparse: int | None
) -> tuple[MmapArea, ...]:
    if RegionInfoFlags.MMAP not in flags:
        return ()
    if sparse is None:
        return (MmapArea(0, region_size),)
    cap = answer.read(vfio_region_info_cap_sparse_mmap, sparse)
    areas = answer.read_array(
        vfio_region_sparse_mmap_area,
        sparse + sizeof(vfio_region_info_cap_sparse_mmap),
        cap.nr_areas,
    )
    if any(area.offset + area.size > region_size for area in areas):
        raise answer.malformed("a mappable area lies outside of its region")
    return tuple(MmapArea(area.offset, area.size) for area in areas)


def _iova_ranges(answer: InfoReply, at: int | None) -> tuple[IovaRange, ...] | None:
    if at is None:
        return None
    cap = answer.read(vfio_iommu_type1_info_cap_iova_range, at)
    first = at + sizeof(vfio_iommu_type1_info_cap_iova_range)
    ranges = answer.read_array(vfio_iova_range, first, cap.nr_iovas)
    if any(r.start > r.end for r in ranges):
        raise answer.malformed("an IOVA range ends before it starts")
    return tuple(IovaRange(r.start, r.end) for r in ranges)
