"""A region of an open device: accessed through system calls, or mapped."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from vfiotool.errors import ClosedError, KernelError
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.dma_buf import export_dma_buf
from vfiotool.vfio.info import MmapArea, RegionInfo
from vfiotool.vfio.mmio.access import Guard, RegionAccess, guarded
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.regions.bar_errors import bar_error
from vfiotool.vfio.uapi import RegionInfoFlags

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Region:
    """A region of a device, described by ``info``; ``areas`` are the parts that can be mapped.

    It is a ``RegisterSpace`` through system calls, one for each access of 8, 16 or 32 bits: for regions that
    cannot be mapped, for example I/O ports. An access of 64 bits can reach the device as two of 32 (for a BAR
    with kernels before 6.12, for configuration space with all kernels): map the region if that matters. The
    kernel returns ones for the MSI-X table here; the device's own bytes are visible in a mapping.

    Every access is checked before the device sees any of it:

    AccessError: the access lies outside, is misaligned, is not allowed, or writes to bytes of the kernel.
    KernelError: the kernel's errno; EIO if the device's memory is off, EBUSY if something else has the BAR.
    ClosedError: the device is closed or was released.

    Threads may share it.
    """

    def __init__(self, file: DeviceFile, info: RegionInfo, name: str, guards: Iterable[Guard] = ()) -> None:
        self._file = file
        self._guards = tuple(guards)
        self.info = info
        self.name = name
        self.areas = _merged(info.mmap_areas)

    @property
    def index(self) -> int:
        """The kernel's index of the region."""
        return self.info.index

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.info.size

    def read(self, size: int, offset: int = 0) -> bytes:
        """Return bytes, by accesses whose width the kernel chooses."""
        return self._get(RegionAccess("read", offset, size, 0, self.name))

    def write(self, data: ReadableBuffer, offset: int = 0) -> None:
        """Write bytes, by accesses whose width the kernel chooses."""
        taken = bytes(data)
        self._put(RegionAccess("write", offset, len(taken), 0, self.name), taken)

    def read8(self, offset: int, /) -> int:
        """Return the 8 bits at an offset."""
        return self._get_number(offset, 8)

    def read16(self, offset: int, /) -> int:
        """Return the 16 bits at an offset."""
        return self._get_number(offset, 16)

    def read32(self, offset: int, /) -> int:
        """Return the 32 bits at an offset."""
        return self._get_number(offset, 32)

    def read64(self, offset: int, /) -> int:
        """Return the 64 bits at an offset."""
        return self._get_number(offset, 64)

    def write8(self, offset: int, value: int, /) -> None:
        """Write 8 bits at an offset."""
        self._put_number(offset, 8, value)

    def write16(self, offset: int, value: int, /) -> None:
        """Write 16 bits at an offset."""
        self._put_number(offset, 16, value)

    def write32(self, offset: int, value: int, /) -> None:
        """Write 32 bits at an offset."""
        self._put_number(offset, 32, value)

    def write64(self, offset: int, value: int, /) -> None:
        """Write 64 bits at an offset."""
        self._put_number(offset, 64, value)

    def map(self, offset: int = 0, size: int | None = None) -> Mmio:
        """Map ``size`` bytes from an offset on into this process, or all bytes from there.

        Offset and size need no alignment. If the kernel maps only parts of the region, the bytes must lie in
        one of ``areas``. Writes to the MSI-X table and its pending bits are refused: they belong to the
        kernel.

        Raises:
            AccessError: the bytes lie outside, or cannot be mapped; the message has the areas that can.
            KernelError: the kernel's errno from mmap(2).
        """
        count = self.size - offset if size is None else size
        access = RegionAccess("map", offset, count, 0, self.name)
        self._require_mappable(access)
        write = RegionInfoFlags.WRITE in self.info.flags
        try:
            window = self._file.map(self.info.offset + offset, count, write=write)
        except KernelError as error:
            raise bar_error(error, self._file.name, self.index) from None
        window.name = f"{self.name} from {offset:#x} on" if offset else self.name
        for guard in self._guards:
            window.guard(guard.moved(offset))
        window.export_by(partial(_export, weakref.ref(self._file), self.index, offset))
        return window

    def _require_mappable(self, access: RegionAccess) -> None:
        if access.size <= 0:
            raise access.refused("is empty", hint=f"the region has {self.size:#x} bytes")
        self._require_bounded(access)
        if not self.areas:
            hint = "use the region's own methods, for example read32(), which are system calls"
            raise access.refused("is not possible: the kernel cannot map this region", hint=hint)
        if not any(
            area.offset <= access.offset and access.end <= area.offset + area.size for area in self.areas
        ):
            known = ", ".join(f"{area.offset:#x} to {area.offset + area.size - 1:#x}" for area in self.areas)
            kept = "".join(f"; {guard.why}" for guard in self._guards if guard.meets(access))
            hint = "map the areas one by one, and use the region's own methods, as read32(), for the rest"
            raise access.refused(f"is not possible: only {known} can be mapped{kept}", hint=hint)

    def _get_number(self, offset: int, width: int) -> int:
        return int.from_bytes(self._get(RegionAccess.single("read", offset, width, self.name)), "little")

    def _put_number(self, offset: int, width: int, value: int) -> None:
        access = RegionAccess.single("write", offset, width, self.name)
        if not 0 <= value < 1 << width:
            raise access.too_large(value)
        self._put(access, value.to_bytes(access.size, "little"))

    def _get(self, access: RegionAccess) -> bytes:
        self._require_bounded(access)
        if RegionInfoFlags.READ not in self.info.flags:
            raise access.refused("is forbidden: it cannot be read", hint="the kernel allows no read there")
        try:
            return self._file.pread(access.size, self.info.offset + access.offset)
        except KernelError as error:
            raise bar_error(error, self._file.name, self.index) from None

    def _put(self, access: RegionAccess, data: bytes) -> None:
        self._require_writable(access)
        try:
            self._file.pwrite(data, self.info.offset + access.offset)
        except KernelError as error:
            raise bar_error(error, self._file.name, self.index) from None

    def _require_writable(self, access: RegionAccess) -> None:
        self._require_bounded(access)
        if RegionInfoFlags.WRITE not in self.info.flags:
            raise access.unwritable()
        forbidden = guarded(access, self._guards)
        if forbidden is not None:
            raise forbidden

    def _require_bounded(self, access: RegionAccess) -> None:
        if access.offset < 0 or access.size < 0 or access.end > self.size:
            raise access.outside(self.size)
        if access.width and access.offset % access.size:
            raise access.misfit()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {self.size:#x} bytes>"


def _export(opened: weakref.ref[DeviceFile], index: int, start: int, offset: int, size: int) -> int:
    """Export a part of a region. A window does not keep its device open: see ``Handle``."""
    file = opened()
    if file is None:
        raise ClosedError("the device is closed", hint="open it again")
    return export_dma_buf(file, index, start + offset, size)


def _merged(areas: Iterable[MmapArea]) -> tuple[MmapArea, ...]:
    """Join adjacent areas, in ascending order: a map may span them."""
    joined: list[MmapArea] = []
    for area in sorted((area for area in areas if area.size), key=lambda area: area.offset):
        last = joined[-1] if joined else None
        if last is not None and area.offset <= last.offset + last.size:
            end = max(last.offset + last.size, area.offset + area.size)
            joined[-1] = MmapArea(last.offset, end - last.offset)
        else:
            joined.append(area)
    return tuple(joined)
