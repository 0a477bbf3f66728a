"""What an IO address space is to the rest of this package, whichever of the kernel's interfaces makes it."""

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
    """The interfaces through which the kernel gives out an IOMMU.

    The two ``compat`` modes are type1 as iommufd plays it: containers that are iommufds.
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
    """What an address space takes: ``page_sizes`` is a bitmap of bytes.

    ``iova_ranges`` leaves out what the kernel reserves; ``dma_avail`` is how many more mappings there
    may be, ``None`` where there is no limit or the kernel does not tell.
    """

    page_sizes: int
    iova_ranges: tuple[IovaRange, ...]
    dma_avail: int | None


class Iommu(Protocol):
    """An IO address space and the devices in it. Threads may share it, but see ``Handle``.

    Errors are the same in all modes: DmaMapError with the errno that type1v2 has for the cause.
    """

    mode: IommuMode
    name: str
    on_emptied: Callable[[], None]
    """Called when the kernel has undone all mappings because the last device left."""

    @property
    def attached(self) -> bool:
        """Say whether the kernel keeps mappings now: type1 does while a device is open."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that are open, for a hot reset: none where devices are opened by nodes of their own."""

    @property
    def closed(self) -> bool:
        """Say whether ``close()`` was called."""

    def open_device(self, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        """Bring a device into the address space and open it."""

    def info(self) -> IommuInfo:
        """Return what the address space takes now; each further device may narrow it."""

    def map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Let the devices reach memory of this process."""

    @property
    def can_map_files(self) -> bool:
        """Return True if ``map_file`` works: through iommufd, since Linux 6.14."""

    def map_file(self, fd: int, start: int, iova: int, size: int, access: DmaMapFlags) -> None:
        """Let the devices reach the memory of a file, without an address in this process."""

    def map_ranges(self, ranges: Ranges, access: DmaMapFlags) -> None:
        """Map all ranges or none, neighbours by one call; the error's ``index`` is the one that failed."""

    def unmap(self, iova: int, size: int) -> int:
        """Undo the mappings inside a range, and return the bytes that were mapped; none is ENOENT."""

    def unmap_ranges(self, ranges: Ranges) -> int:
        """Undo what ``map_ranges`` did, and return the bytes that were mapped."""

    def unmap_all(self) -> int:
        """Undo all mappings, and return the bytes that were mapped, 0 for none."""

    def close(self) -> None:
        """Close it; the kernel ends it with its last device."""
