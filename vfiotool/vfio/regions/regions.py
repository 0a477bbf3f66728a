"""The regions of an open device: BARs, ROM, configuration space, and device-specific regions."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import cast, overload

from vfiotool.errors import KernelError, UnsupportedError
from vfiotool.pci.capabilities import decoding
from vfiotool.pci.capabilities.standard import MsiX
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.device_info import read_device_info, read_region_info
from vfiotool.vfio.info import RegionInfo
from vfiotool.vfio.mmio.access import Guard
from vfiotool.vfio.regions.config_space import ConfigSpace
from vfiotool.vfio.regions.region import Region
from vfiotool.vfio.uapi import DeviceIoctl, PciRegion

_LAST_OFFSET = (1 << 63) - 1


class _Named:
    """An attribute that returns the region of an index."""

    def __init__(self, index: PciRegion) -> None:
        self._index = index

    @overload
    def __get__(self, regions: None, owner: type[Regions]) -> _Named: ...
    @overload
    def __get__(self, regions: Regions, owner: type[Regions]) -> Region: ...
    def __get__(self, regions: Regions | None, owner: type[Regions]) -> _Named | Region:
        return self if regions is None else regions[self._index]


class Regions:
    """A device's regions by index, which may be a ``PciRegion``, or by name; iterates over existing regions.

    A missing or empty region is an UnsupportedError that lists the existing regions. Threads may share it.
    """

    bar0 = _Named(PciRegion.BAR0)
    bar1 = _Named(PciRegion.BAR1)
    bar2 = _Named(PciRegion.BAR2)
    bar3 = _Named(PciRegion.BAR3)
    bar4 = _Named(PciRegion.BAR4)
    bar5 = _Named(PciRegion.BAR5)
    rom = _Named(PciRegion.ROM)
    vga = _Named(PciRegion.VGA)

    def __init__(self, file: DeviceFile) -> None:
        self._file = file
        self._found: dict[int, Region | None] = {}

    @property
    def config(self) -> ConfigSpace:
        """The configuration space."""
        return cast("ConfigSpace", self[PciRegion.CONFIG])

    def __getitem__(self, index: int) -> Region:
        """Return the region of an index.

        Raises:
            UnsupportedError: the device has no such region.
            KernelError: EBADMSG for a malformed reply.
        """
        region = self._find(index)
        if region is None:
            had = ", ".join(f"{_name(region.index)} ({region.size:#x} bytes)" for region in self)
            raise UnsupportedError(
                f"{self._file.name} has no {_name(index)}", hint=f"it has {had or 'no regions'}"
            )
        return region

    def __contains__(self, index: int) -> bool:
        return self._find(index) is not None

    def __iter__(self) -> Iterator[Region]:
        for index in range(read_device_info(self._file).num_regions):
            region = self._find(index)
            if region is not None:
                yield region

    def _find(self, index: int) -> Region | None:
        if index not in self._found:
            self._found.setdefault(index, self._ask(index))
        return self._found[index]

    def _ask(self, index: int) -> Region | None:
        try:
            info = read_region_info(self._file, index)
        except KernelError as error:
            if error.errno == errno.EINVAL:
                return None
            raise
        return self._make(replace(info, index=index)) if info.size else None

    def _make(self, info: RegionInfo) -> Region:
        if info.offset + info.size - 1 > _LAST_OFFSET:
            operation = DeviceIoctl.VFIO_DEVICE_GET_REGION_INFO.name
            hint = f"{_name(info.index)} ends beyond the largest offset of a file; a bug in the VFIO driver"
            raise KernelError(errno.EBADMSG, operation, self._file.name, hint=hint)
        name = f"{_name(info.index)} of {self._file.name}"
        if info.index == PciRegion.CONFIG:
            return ConfigSpace(self._file, info, name)
        return Region(self._file, info, name, self._guards(info.index))

    def _guards(self, index: int) -> Iterator[Guard]:
        msix = self._msix
        if msix is None or index > PciRegion.BAR5:
            return
        hint = "set interrupts up with the device's irqs"
        if msix.table_bar == index:
            end = msix.table_offset + msix.table_size
            yield Guard(msix.table_offset, end, "the MSI-X table belongs to the kernel", hint)
        if msix.pba_bar == index:
            end = msix.pba_offset + msix.pba_size
            yield Guard(msix.pba_offset, end, "the MSI-X pending bits belong to the device", hint)

    @cached_property
    def _msix(self) -> MsiX | None:
        return decoding.find(self.config.raw(), MsiX) if PciRegion.CONFIG in self else None


def _name(index: int) -> str:
    return PciRegion(index).name.lower() if index in PciRegion.__members__.values() else f"region {index}"
