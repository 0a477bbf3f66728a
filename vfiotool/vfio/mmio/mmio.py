"""A mapped part of a region: registers by exact width, blocks and FIFOs."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from vfiotool._shim import ffi, lib
from vfiotool.errors import ClosedError, KernelError, UnsupportedError, VfioToolError
from vfiotool.vfio.handle import checked
from vfiotool.vfio.mmio.access import Guard, RegionAccess, guarded

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from vfiotool._shim import _Window, _Word

_read8, _read16, _read32, _read64 = lib.vt_read8, lib.vt_read16, lib.vt_read32, lib.vt_read64
_write8, _write16, _write32, _write64 = lib.vt_write8, lib.vt_write16, lib.vt_write32, lib.vt_write64
_word = cast("Callable[[], _Word]", partial(ffi.new, ffi.typeof("uint64_t *")))

_BYTES = {8: 1, 16: 2, 32: 4, 64: 8}
_MAPPED = lib.VT_WINDOW_MAPPED
_WRITE = lib.VT_WINDOW_WRITE
_CLOSED = lib.VT_WINDOW_CLOSED
_ASLEEP = lib.VT_WINDOW_ASLEEP


class Mmio:
    """Bytes of a region at an ``address`` of this process, as a ``RegisterSpace``; a context manager.

    Each method makes as many accesses as its name says, each of its exact width, in program order. Memory
    that was written before a register is written is visible to the device by then. Memory that is read after
    a register was read has what the device had written before. The device sees nothing of a call that fails:

    AccessError: the access lies outside, is misaligned, is not allowed, or the device is in low power.
    ClosedError: the window was closed, or its device released.

    Threads may share it. Any of them may ``close()`` or ``revoke()`` it at any time: running accesses then
    reach plain memory, not the device. The addresses stay in use until the object is freed.
    """

    __slots__ = (
        "__weakref__",
        "_asleep",
        "_export",
        "_file_offset",
        "_guards",
        "_memory",
        "_why_closed",
        "_window",
        "name",
    )

    def __init__(self, window: _Window, name: str, *, file_offset: int = 0, memory: object = None) -> None:
        """Own a window; ``memory`` is the object that holds its bytes. See ``of_file`` and ``of_memory``."""
        self._window = window
        self._file_offset = file_offset
        self._memory = memory
        self._guards: list[Guard] = []
        self._asleep = ("", "")
        self._export: Callable[[int, int], int] | None = None
        self._why_closed = ""
        self.name = name

    @classmethod
    def of_file(cls, fd: int, offset: int, size: int, *, write: bool, name: str) -> Mmio:
        """Map ``size`` bytes of a file; the mapping outlives the descriptor.

        Raises:
            KernelError: the kernel's errno from mmap(2).
        """
        if not 0 <= offset < 1 << 63 or not 0 < size < 1 << 63:
            raise KernelError(errno.EINVAL, "mmap", name)
        window = _new_window()
        checked(lib.vt_window_map(window, fd, offset, size, write), "mmap", name)
        return cls(window, name, file_offset=offset)

    @classmethod
    def of_memory(cls, memory: ReadableBuffer, *, write: bool = True, name: str = "memory") -> Mmio:
        """Use a buffer in place of a device's registers; ``write`` allows writes."""
        view = memoryview(memory)
        window = _new_window()
        window.base = int(ffi.cast("uintptr_t", ffi.from_buffer(view, require_writable=write)))  # type: ignore[call-overload]
        window.size = view.nbytes
        window.flags = _WRITE if write else 0
        return cls(window, name, memory=view)

    @property
    def window(self) -> _Window:
        """The window for the shim's own loops. Hold this object while they may use the window."""
        return self._window

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._window.size

    @property
    def address(self) -> int:
        """The address of the bytes in this process, for a DMA map of the region to other devices.

        Raises:
            ClosedError: the window is closed.
        """
        if self.closed:
            raise self._closed_error()
        return self._window.base

    def export_by(self, export: Callable[[int, int], int]) -> None:
        """Set the function behind ``dma_buf``."""
        self._export = export

    def dma_buf(self, offset: int, size: int) -> int:
        """Return the descriptor of a new dma-buf of whole pages, which the caller closes.

        Raises:
            UnsupportedError: this kernel, or the driver of the device, exports no registers.
            KernelError: the kernel's errno.
            ClosedError: the window is closed, or its device.
        """
        if self.closed:
            raise self._closed_error()
        if self._export is None:
            raise UnsupportedError(
                f"{self.name} cannot be exported as a dma-buf", hint="map a region's window"
            )
        return self._export(offset, size)

    @property
    def closed(self) -> bool:
        """Return True if the window was closed, or its device released."""
        return bool(self._window.flags & _CLOSED)

    def read8(self, offset: int, /) -> int:
        """Return the 8 bits at an offset."""
        try:
            value = _read8(self._window, offset)
        except OverflowError:
            value = -errno.ERANGE
        if value < 0:
            raise self._refused(value, RegionAccess.single("read", offset, 8, self.name))
        return value

    def read16(self, offset: int, /) -> int:
        """Return the 16 bits at an offset."""
        try:
            value = _read16(self._window, offset)
        except OverflowError:
            value = -errno.ERANGE
        if value < 0:
            raise self._refused(value, RegionAccess.single("read", offset, 16, self.name))
        return value

    def read32(self, offset: int, /) -> int:
        """Return the 32 bits at an offset."""
        try:
            value = _read32(self._window, offset)
        except OverflowError:
            value = -errno.ERANGE
        if value < 0:
            raise self._refused(value, RegionAccess.single("read", offset, 32, self.name))
        return value

    def read64(self, offset: int, /) -> int:
        """Return the 64 bits at an offset."""
        value = _word()  # all 64-bit values are valid, so errors are returned separately
        try:
            result = _read64(self._window, offset, value)
        except OverflowError:
            result = -errno.ERANGE
        if result:
            raise self._refused(result, RegionAccess.single("read", offset, 64, self.name))
        return value[0]

    def write8(self, offset: int, value: int, /) -> None:
        """Write 8 bits at an offset."""
        try:
            result = _write8(self._window, offset, value)
        except OverflowError:
            result = -errno.EOVERFLOW
        if result:
            raise self._refused(result, RegionAccess.single("write", offset, 8, self.name), value)

    def write16(self, offset: int, value: int, /) -> None:
        """Write 16 bits at an offset."""
        try:
            result = _write16(self._window, offset, value)
        except OverflowError:
            result = -errno.EOVERFLOW
        if result:
            raise self._refused(result, RegionAccess.single("write", offset, 16, self.name), value)

    def write32(self, offset: int, value: int, /) -> None:
        """Write 32 bits at an offset."""
        try:
            result = _write32(self._window, offset, value)
        except OverflowError:
            result = -errno.EOVERFLOW
        if result:
            raise self._refused(result, RegionAccess.single("write", offset, 32, self.name), value)

    def write64(self, offset: int, value: int, /) -> None:
        """Write 64 bits at an offset."""
        try:
            result = _write64(self._window, offset, value)
        except OverflowError:
            result = -errno.EOVERFLOW
        if result:
            raise self._refused(result, RegionAccess.single("write", offset, 64, self.name), value)

    def read_block(self, offset: int, size: int, width: int = 32) -> bytes:
        """Return ``size`` bytes from an offset on, read ``width`` bits at a time, in ascending order.

        ``size`` is a multiple of the width: there is no access of another width for a rest.
        """
        access = RegionAccess("read", offset, size, width, self.name)
        if size > self.size:
            raise self._refused(-errno.ERANGE, access)
        return self._read_many(lib.vt_read_block, access)

    def read_fifo(self, offset: int, size: int, width: int = 32) -> bytes:
        """Return ``size`` bytes, all read at one offset, ``width`` bits at a time."""
        return self._read_many(lib.vt_read_fifo, RegionAccess("read", offset, size, width, self.name))

    def write_block(self, offset: int, data: ReadableBuffer, width: int = 32) -> None:
        """Write bytes from an offset on, ``width`` bits at a time, in ascending order.

        Their number is a multiple of the width: there is no access of another width for a rest.
        """
        self._write_many(lib.vt_write_block, offset, data, width)

    def write_fifo(self, offset: int, data: ReadableBuffer, width: int = 32) -> None:
        """Write bytes, all at one offset, ``width`` bits at a time."""
        self._write_many(lib.vt_write_fifo, offset, data, width)

    def guard(self, guard: Guard) -> None:
        """Forbid writes to some bytes; a window has at most two guards."""
        place = self._window.guards[len(self._guards)]
        self._guards.append(guard)
        place.start, place.end = max(guard.start, 0), max(guard.end, 0)

    def revoke(self, reason: str) -> None:
        """Close the window, from any thread; ``reason`` is the hint of later ClosedErrors."""
        if not self.closed:
            self._why_closed = reason
        checked(lib.vt_window_revoke(self._window), "mmap", self.name)

    def close(self) -> None:
        """Close the window; calls after the first do nothing."""
        if not self.closed:
            self.revoke("map it again")

    def sleep(self, why: str, hint: str) -> None:
        """Block accesses while the device is off: the kernel would end the process with SIGBUS.

        ``why`` and ``hint`` are those of the AccessError for blocked accesses.
        """
        self._asleep = (why, hint)
        checked(lib.vt_window_sleep(self._window), "mmap", self.name)

    def wake(self, fd: int) -> None:
        """Allow accesses again to the file that the window was mapped from.

        Raises:
            KernelError: the kernel's errno from mmap(2); accesses stay blocked.
        """
        checked(lib.vt_window_wake(self._window, fd, self._file_offset), "mmap", self.name)

    def _read_many(self, read: Callable[[_Window, int, Any, int, int], int], access: RegionAccess) -> bytes:
        data = bytearray(max(access.size, 0))
        width = _BYTES.get(access.width, 0)
        try:
            result = read(self._window, access.offset, ffi.from_buffer(data), access.size, width)
        except OverflowError:
            result = -errno.ERANGE
        if result:
            raise self._refused(result, access)
        return bytes(data)

    def _write_many(
        self,
        write: Callable[[_Window, int, Any, int, int], int],
        offset: int,
        data: ReadableBuffer,
        width: int,
    ) -> None:
        size = memoryview(data).nbytes
        try:
            # No variable holds cffi's buffer: the collector crashes on a view with it, as in a traceback.
            result = write(self._window, offset, ffi.from_buffer(data), size, _BYTES.get(width, 0))
        except OverflowError:
            result = -errno.ERANGE
        if result:
            raise self._refused(result, RegionAccess("write", offset, size, width, self.name))

    def _refused(self, code: int, access: RegionAccess, value: int = 0) -> VfioToolError:
        """Return the error for a refused access, from the shim's errno."""
        if self.closed:
            return self._closed_error()
        if code == -errno.EAGAIN:
            why, hint = self._asleep
            return access.refused(f"is not possible: {why}", hint=hint)
        if code == -errno.EINVAL:
            return access.misfit()
        if code == -errno.EPERM:
            writable = self._window.flags & _WRITE
            return (guarded(access, self._guards) if writable else None) or access.unwritable()
        if code == -errno.EOVERFLOW and -(1 << 63) <= access.offset < 1 << 63:
            return access.too_large(value)
        return access.outside(self.size)

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name} is closed", hint=self._why_closed)

    def __enter__(self) -> Mmio:
        if self.closed:
            raise self._closed_error()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._window.flags & (_MAPPED | _CLOSED) == _MAPPED:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        flags = self._window.flags
        state = "closed" if flags & _CLOSED else "asleep" if flags & _ASLEEP else f"at {self._window.base:#x}"
        return f"<Mmio {self.name}, {self.size:#x} bytes, {state}>"


def _new_window() -> _Window:
    """Make a window whose addresses are freed with it: no access can run at that time."""
    return cast("_Window", ffi.gc(ffi.new("struct vt_window *"), lib.vt_window_unmap))
