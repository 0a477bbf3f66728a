"""Mappings: of one piece of memory, of many pieces at once, and of memory that was allocated for a device."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property, lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from vfiotool.errors import ClosedError, DmaRangeError
from vfiotool.vfio.iommu.ranges import Ranges

M = TypeVar("M", bound="Mapped")


class Mapped:
    """Memory that devices reach until ``close()``; a context manager.

    The mapping lasts until it is closed, even if nothing refers to it any more: a device may still write to
    the memory. Closing it twice, or after its device, does nothing.
    """

    _unmap: Callable[[], None] | None = None
    _owner: memoryview | None = None
    _why_closed = "map it again"

    def on_close(self, unmap: Callable[[], None]) -> None:
        """Set the callback that removes the mapping; for ``Dma`` and ``Arena``."""
        self._unmap = unmap

    @property
    def closed(self) -> bool:
        """Return True if devices can no longer reach the memory."""
        return self._unmap is None

    def close(self) -> None:
        """Remove the mapping; calls after the first do nothing.

        Raises:
            DmaMapError: the kernel had another number of bytes mapped there.
        """
        unmap, self._unmap = self._unmap, None
        if unmap is not None:
            try:
                unmap()
            finally:
                self._let_go()

    def forget(self, why: str) -> None:
        """Mark the mapping as closed: the kernel has removed it."""
        if self._unmap is not None:
            self._unmap = None
            self._why_closed = why
            self._let_go()

    def _let_go(self) -> None:
        """Release the caller's buffer, which cannot be closed or resized while it is mapped."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.release()

    def require_open(self) -> None:
        """Raise ClosedError if devices can no longer reach the memory."""
        if self._unmap is None:
            raise ClosedError(f"{self!r} is no longer mapped", hint=self._why_closed)

    def __enter__(self: M) -> M:
        self.require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Mapping(Mapped):
    """``size`` bytes at ``address`` of this process, which devices reach at ``iova``."""

    def __init__(self, address: int, iova: int, size: int, owner: memoryview | None = None) -> None:
        self.address = address
        self.iova = iova
        self.size = size
        self._owner = owner

    def __repr__(self) -> str:
        return f"<Mapping of {self.size:#x} bytes at IOVA {self.iova:#x}>"


class Batch(Mapped):
    """Many pieces of memory that were mapped at once; ``runs`` are the mappings in the kernel."""

    def __init__(self, runs: Ranges) -> None:
        self.runs = runs

    @property
    def size(self) -> int:
        """The number of mapped bytes."""
        return self.runs.size

    @cached_property
    def _by_address(self) -> list[tuple[int, int, int]]:
        return sorted(self.runs)

    def iova_of(self, address: int) -> int:
        """Return the IOVA of an address of this process.

        Raises:
            DmaRangeError: the batch does not contain the address.
        """
        at = bisect_right(self._by_address, (address, 1 << 64, 0)) - 1
        if at >= 0:
            vaddr, iova, size = self._by_address[at]
            if address < vaddr + size:
                return iova + address - vaddr
        raise DmaRangeError(
            f"the batch has no memory at {address:#x}", hint="pass an address that was mapped with it"
        )

    def __repr__(self) -> str:
        return f"<Batch of {self.size:#x} bytes in {len(self.runs)} runs>"


class Buffer(Mapped):
    """Memory that devices reach at ``iova``, and this process as an array of bytes.

    It has the buffer protocol (``bytes``, ``memoryview``, ``numpy.frombuffer`` and others take it without
    a copy), and slices like a ``bytearray`` of fixed length. ``address`` is its address in this process.
    Objects that refer to the memory may outlive the buffer: the memory is freed with the last of them.
    """

    iova: int
    address: int
    size: int
    view: memoryview
    """All bytes of the buffer; a slice of the view is not a copy."""

    if TYPE_CHECKING:

        def __buffer__(self, flags: int, /) -> memoryview: ...

    @staticmethod
    def over(memory: Any, offset: int, iova: int, size: int) -> Buffer:
        """Make a buffer over ``size`` bytes of an object with the buffer protocol, from ``offset`` on."""
        buffer = cast("Any", _array_type(size)).from_buffer(memory, offset)
        buffer.address = ctypes.addressof(buffer)
        buffer.iova = iova
        buffer.size = size
        buffer.view = memoryview(memory)[offset : offset + size]  # a view of the buffer would be a cycle
        return cast("Buffer", buffer)

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> bytes: ...
    def __getitem__(self, where: int | slice) -> int | bytes:
        self.require_open()
        return bytes(self.view[where]) if isinstance(where, slice) else self.view[where]

    def __setitem__(self, where: Any, value: Any) -> None:
        self.require_open()
        self.view[where] = memoryview(value).cast("B") if isinstance(where, slice) else value

    def __repr__(self) -> str:
        return f"<Buffer of {self.size:#x} bytes at IOVA {self.iova:#x}>"


@lru_cache(maxsize=256)
def _array_type(size: int) -> type[Buffer]:
    """Return the type for buffers of one size: before Python 3.12 only C types have the buffer protocol."""
    return type("Buffer", (Buffer, ctypes.c_ubyte * size), {"__module__": __name__})
