"""The interface of an IO address space, which is the same for each of the kernel's IOMMU interfaces."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.group import Group
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.uapi import DmaMapFlags


class IommuMode(str, Enum):
    """The kernel's interfaces to an IOMMU.

    The two ``compat`` modes are type1 emulated by iommufd: their containers are iommufds.
    ``NOIOMMU`` has no IOMMU at all: a device reaches all memory, and the kernel is tainted.
    """

    TYPE1 = "type1"
    TYPE1V2 = "type1v2"
    COMPAT_TYPE1 = "compat-type1"
    COMPAT_TYPE1V2 = "compat-type1v2"
    IOMMUFD = "iommufd"
    NOIOMMU = "noiommu"


@dataclass(frozen=True, slots=True)
class IommuInfo:
    """Properties of an address space; ``page_sizes`` is a bitmap, in bytes.

    ``iova_ranges`` excludes the IOVAs that the kernel reserves. ``dma_avail`` is how many more mappings
    are possible, ``None`` if there is no limit or the kernel does not report it.
    """

    page_sizes: int
    iova_ranges: tuple[IovaRange, ...]
    dma_avail: int | None


class Iommu(Protocol):
    """An IO address space and its devices. Threads may share it, with the limits of ``Handle``.

    Errors are the same in all modes: DmaMapError with the errno that type1v2 returns for the cause.
    """

    mode: IommuMode
    name: str
    on_emptied: Callable[[], None]
    """Called when the kernel has removed all mappings with the last device."""

    @property
    def attached(self) -> bool:
        """Return True if the kernel keeps mappings now: type1 keeps them while a device is open."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The open groups, for a hot reset; empty if devices are opened by cdevs."""

    @property
    def closed(self) -> bool:
        """Return True if ``close()`` was called."""

    def open_device(self, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        """Attach a device to the address space and open it."""

    def info(self) -> IommuInfo:
        """Return page sizes, IOVA ranges and limits as they are now; each further device may narrow them."""

    def map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Map memory of this process for the devices."""

    @property
    def can_map_files(self) -> bool:
        """Return True if ``map_file`` works: with iommufd, since Linux 6.14."""

    def map_file(self, fd: int, start: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Map the memory of a file for the devices, without an address in this process."""

    def map_ranges(self, ranges: Ranges, access: DmaMapFlags) -> None:
        """Map all ranges or none, adjacent ranges in one call; ``index`` of the error is the failed range."""

    def unmap(self, iova: int, size: int) -> int:
        """Remove the mappings inside a range, and return their bytes; ENOENT if there are none."""

    def unmap_ranges(self, ranges: Ranges) -> int:
        """Remove the mappings of ``map_ranges``, and return the number of bytes that were mapped."""

    def unmap_all(self) -> int:
        """Remove all mappings, and return the number of bytes that were mapped; 0 if there were none."""

    def close(self) -> None:
        """Close the address space; the kernel frees it with its last device."""
