"""The memory that the devices of an IO address space reach: whose it is, and where they reach it."""

from __future__ import annotations

import errno
import mmap
import threading
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from vfiotool._shim import ffi
from vfiotool.errors import ClosedError, DmaMapError, DmaRangeError
from vfiotool.vfio.dma.arena import Arena
from vfiotool.vfio.dma.iova import IovaAllocator
from vfiotool.vfio.dma.limits import has_memlock_limit, require_dma_entries, require_memlock
from vfiotool.vfio.dma.mapping import Batch, Buffer, Mapped, Mapping
from vfiotool.vfio.dma.memory import Memory, PageKind
from vfiotool.vfio.iommu.protocol import Iommu
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.uapi import ContainerIoctl, DmaMapFlags

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LARGE = 2 << 20
_LARGE_PAGES = (1 << 30, _LARGE)  # what IOMMUs have beside their smallest page
_MAP = ContainerIoctl.VFIO_IOMMU_MAP_DMA.name
_GONE = "its last device was closed or given back, which undid all mappings"

# To join flags takes longer than to take an IOVA.
_ACCESS = {
    (read, write): DmaMapFlags(DmaMapFlags.READ * read | DmaMapFlags.WRITE * write)
    for read in (False, True)
    for write in (False, True)
}

M = TypeVar("M", bound=Mapped)


class Addressed(Protocol):
    """Memory that knows where it is in this process: a ``Mmio``, a ``Memory``, a ``Buffer``."""

    @property
    def address(self) -> int:
        """Its first byte."""

    @property
    def size(self) -> int:
        """Its bytes."""


class Dma:
    """What devices of one address space reach. Threads may share it: disjoint calls run side by side.

    Sizes, addresses and IOVAs are bytes. ``read`` and ``write`` say what a device may do. Without
    ``iova`` one is chosen, up to ``iova_max`` where that is given: the highest IOVA that the device
    can reach, ``(1 << bits) - 1``. What is mapped stays so until it is closed, or the last device is.

    All that map raise DmaMapError (see ``Iommu.map``), IovaExhaustedError, and ClosedError after the end.
    """

    def __init__(self, iommu: Iommu) -> None:
        self.iommu = iommu
        self._lock = threading.Lock()
        self._known: IovaAllocator | None = None
        self._mapped: dict[int, tuple[Mapped, int]] = {}  # by id, with how many bytes
        self._limit: int | None = None  # how many mappings the kernel takes, where it tells
        self._used = 0  # how many of them there are: to ask the kernel takes as long as to map
        self._has_memlock_limit = has_memlock_limit()
        self._shares = 0
        iommu.on_emptied = self._forget_all

    def alloc(
        self,
        size: int,
        *,
        iova: int | None = None,
        iova_max: int | None = None,
        pages: PageKind | str = "auto",
        read: bool = True,
        write: bool = True,
    ) -> Buffer:
        """Allocate memory and map it; it is zero. ``pages`` is as for ``Memory``.

        Raises:
            UnsupportedError: there are no such pages.
        """
        memory = Memory(size, pages)
        place = self._map(memory.address, memory.size, iova, iova_max, _access(read, write))
        return self._keep(Buffer.over(memory.source, memory.offset, place, size), [place], memory.size)

    def arena(
        self,
        size: int,
        *,
        iova: int | None = None,
        iova_max: int | None = None,
        pages: PageKind | str = "auto",
        read: bool = True,
        write: bool = True,
    ) -> Arena:
        """Allocate memory and map it, by one call to the kernel, for many small buffers.

        Raises:
            UnsupportedError: there are no such pages.
        """
        memory = Memory(size, pages)
        place = self._map(memory.address, memory.size, iova, iova_max, _access(read, write))
        return self._keep(Arena(memory, place), [place], memory.size)

    def map(
        self,
        memory: ReadableBuffer | Addressed | int,
        size: int | None = None,
        *,
        offset: int = 0,
        iova: int | None = None,
        iova_max: int | None = None,
        read: bool = True,
        write: bool = True,
    ) -> Mapping:
        """Map the caller's own memory: anything with the buffer protocol, a mapped BAR, or an address.

        ``size`` bytes from ``offset`` on; all of it without a size. Address and size must be whole pages:
        an ``mmap.mmap`` is made of them. A buffer is held until it is closed; memory that is given by its
        address must stay where it is. A BAR is another device's, for DMA from device to device.

        Raises:
            DmaRangeError: the memory does not reach so far, or an address comes without a size.
        """
        address, length, owner = _located(memory, size, offset, write=write)
        try:
            place = self._map(address, length, iova, iova_max, _access(read, write))
        except BaseException:
            if owner is not None:
                owner.release()  # else the traceback would keep the buffer from being closed
            raise
        return self._keep(Mapping(address, place, length, owner), [place], length)

    def map_file(
        self,
        fd: int,
        size: int,
        *,
        offset: int = 0,
        iova: int | None = None,
        iova_max: int | None = None,
        read: bool = True,
        write: bool = True,
    ) -> Mapping:
        """Map a file's memory, a memfd's above all, which other processes may have mapped too.

        iommufd pins whole folios of it where the kernel can (since 6.14): then it is not mapped into this
        process, and has no ``address`` (0). Else it is mapped here first.

        Raises:
            OSError: the file cannot be mapped.
        """
        if self.iommu.can_map_files:
            place = self._take(0, size, iova, iova_max)
            try:
                self.iommu.map_file(fd, offset, place, size, _access(read, write))
            except BaseException:
                self._give_back([place])
                raise
            return self._keep(Mapping(0, place, size), [place], size)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection, offset=offset)
        return self.map(memory, iova=iova, iova_max=iova_max, read=read, write=write)

    def map_ranges(
        self,
        ranges: Ranges | Iterable[tuple[int, int, int]] | ReadableBuffer,
        *,
        read: bool = True,
        write: bool = True,
    ) -> Batch:
        """Map many (address, iova, size), all of them or none, in one call to the shim.

        Neighbours in memory and in IOVA become one mapping. The memory must stay where it is. A failure
        says by its ``index`` which range it is. See ``Ranges.of`` for what is taken without a copy.

        Raises:
            DmaRangeError: the ranges are not made of 64-bit numbers.
        """
        given = ranges if isinstance(ranges, Ranges) else Ranges.of(ranges)
        runs = given.merged()
        places = self._take_all(given, runs)
        try:
            size = self._map_ranges(given, runs, _access(read, write))
        except BaseException:
            self._give_back(places)
            raise
        return self._keep(Batch(runs), places, size)

    def map_buffers(
        self,
        addresses: ReadableBuffer,
        size: int,
        *,
        iova_max: int | None = None,
        read: bool = True,
        write: bool = True,
    ) -> Batch:
        """Map many pieces of memory of one size by their addresses, an array of 64-bit words.

        Their IOVAs are chosen so that pieces which are neighbours in memory, in whatever order they come,
        become one mapping: ``Batch.iova_of`` tells where each is. The memory must stay where it is.

        Raises:
            DmaRangeError: they leave the 64 bits.
        """
        ranges, span = Ranges.laid_out(addresses, size, _LARGE)
        place = self._take(0, span, None, iova_max)
        try:
            ranges.place(place, _LARGE)
            runs = ranges.merged()
            size = self._map_ranges(ranges, runs, _access(read, write))
        except BaseException:
            self._give_back([place])
            raise
        return self._keep(Batch(runs), [place], size)

    def unmap_all(self) -> int:
        """Undo all mappings at once, and return how many bytes they had.

        Raises:
            DmaMapError: the kernel had another number of bytes mapped.
        """
        expected = sum(size for _, size in self._mapped.values())
        unmapped = self.iommu.unmap_all()
        self._forget_all("unmap_all() was called")
        if unmapped != expected:
            raise _miscounted(0, expected, unmapped)
        return unmapped

    def share(self) -> None:
        """Take note that one more device is in the address space."""
        with self._lock:
            self._shares += 1

    def release(self) -> None:
        """Take note that a device has left; with the last one the address space ends, and all mappings."""
        with self._lock:
            self._shares -= 1
            is_last = self._shares <= 0
        if is_last:
            self.iommu.close()
            self._forget_all()

    def refresh(self) -> None:
        """Read again which IOVAs are valid: each further device may narrow them.

        Raises:
            DmaMapError: what is mapped lies outside of them.
        """
        with self._lock:
            if self._known is not None:
                self._known.set_ranges(self.iommu.info().iova_ranges)

    @property
    def mapped(self) -> tuple[Mapped, ...]:
        """What is mapped now."""
        with self._lock:
            return tuple(mapped for mapped, _size in self._mapped.values())

    def _map(
        self, address: int, size: int, iova: int | None, iova_max: int | None, access: DmaMapFlags
    ) -> int:
        if self._has_memlock_limit:
            require_memlock(_MAP, iova or 0, size)
        place = self._take(address, size, iova, iova_max)
        try:
            self.iommu.map(address, place, size, access)
        except BaseException:
            self._give_back([place])
            raise
        return place

    def _map_ranges(self, ranges: Ranges, runs: Ranges, access: DmaMapFlags) -> int:
        """Map them, and return how many bytes they are."""
        size = runs.size
        if self._has_memlock_limit:
            require_memlock(_MAP, 0, size)
        left = None if self._limit is None else self._limit - self._used
        require_dma_entries(_MAP, left, len(runs), 0, size)
        self.iommu.map_ranges(ranges, access)
        return size

    def _take(self, address: int, size: int, iova: int | None, iova_max: int | None) -> int:
        """Take the IOVAs that are asked for, or such that large pages of the memory stay large."""
        with self._lock:
            allocator = self._allocator
            if iova is not None:
                allocator.reserve(iova, size)
                return iova
            align = next((page for page in _LARGE_PAGES if size >= page), allocator.page_size)
            return allocator.allocate(size, align=align, offset=address % align, iova_max=iova_max)

    def _take_all(self, ranges: Ranges, runs: Ranges) -> list[int]:
        """Take the IOVAs of all ranges, or of none; an error's ``index`` is that of the first refused."""
        with self._lock:
            try:
                return self._reserve_all(runs.spans())
            except DmaMapError:
                return self._reserve_all(ranges)  # one by one, to find out which it is

    def _reserve_all(self, ranges: Ranges) -> list[int]:
        taken: list[int] = []
        for index, (_address, iova, size) in enumerate(ranges):
            try:
                self._allocator.reserve(iova, size)
            except DmaMapError as error:
                for place in taken:
                    self._allocator.free(place)
                raise DmaMapError(error.errno or 0, error.operation, iova, size, index=index) from None
            taken.append(iova)
        return taken

    def _give_back(self, places: list[int]) -> None:
        with self._lock:
            if self._known is not None:  # else all was forgotten meanwhile
                for iova in places:
                    self._known.free(iova)

    @property
    def _allocator(self) -> IovaAllocator:
        """The allocator, over what is valid once there is a device. The caller holds the lock."""
        if self._known is None:
            if not self.iommu.closed and not self.iommu.attached:
                raise ClosedError(
                    f"no device is open in {self.iommu.name}", hint="open one there before memory is mapped"
                )
            info = self.iommu.info()
            self._known = IovaAllocator(info.iova_ranges, info.page_sizes & -info.page_sizes)
            self._limit = info.dma_avail
        return self._known

    def _keep(self, mapped: M, places: list[int], size: int) -> M:
        mapped.on_close(partial(self._undo, mapped, places, size))
        with self._lock:
            self._mapped[id(mapped)] = (mapped, size)
            self._used += _count(mapped)
        return mapped

    def _undo(self, mapped: Mapped, places: list[int], size: int) -> None:
        with self._lock:
            if self._mapped.pop(id(mapped), None):
                self._used -= _count(mapped)
        if self.iommu.closed:
            return
        try:
            unmapped = self._unmap(mapped, places, size)
        except DmaMapError:
            if not self.iommu.attached:
                return
            raise
        if unmapped != size:
            raise _miscounted(places[0], size, unmapped)

    def _unmap(self, mapped: Mapped, places: list[int], size: int) -> int:
        """Undo it in the kernel, and only then give its IOVAs to others."""
        if isinstance(mapped, Batch):
            unmapped = self.iommu.unmap_ranges(mapped.runs)
        else:
            unmapped = self.iommu.unmap(places[0], size)
        self._give_back(places)
        return unmapped

    def _forget_all(self, why: str = _GONE) -> None:
        """Take note that the kernel has undone all mappings."""
        with self._lock:
            mapped, self._mapped = self._mapped, {}
            self._known = None
            self._used = 0
        for one, _size in mapped.values():
            one.forget(why)


def _access(read: bool, write: bool) -> DmaMapFlags:
    return _ACCESS[bool(read), bool(write)]


def _count(mapped: Mapped) -> int:
    return len(mapped.runs) if isinstance(mapped, Batch) else 1


def _located(
    memory: ReadableBuffer | Addressed | int, size: int | None, offset: int, *, write: bool
) -> tuple[int, int, memoryview | None]:
    """Return address and size of what is to be mapped, and the hold on a buffer."""
    if isinstance(memory, int):
        if size is None:
            raise DmaRangeError("an address alone has no size", hint="pass size=, in bytes")
        return memory + offset, size, None
    if hasattr(memory, "address") and hasattr(memory, "size"):
        length = _within(memory.size, size, offset)
        return memory.address + offset, length, None
    view = memoryview(memory)
    try:
        if not view.c_contiguous or (view.readonly and write):
            why = "is read-only, and the device may write" if view.readonly else "is not contiguous"
            raise DmaRangeError(f"the buffer {why}", hint="pass write=False, or a buffer of one piece")
        length = _within(view.nbytes, size, offset)
        return int(ffi.cast("uintptr_t", ffi.from_buffer(view))) + offset, length, view
    except BaseException:
        view.release()
        raise


def _within(available: int, size: int | None, offset: int) -> int:
    length = available - offset if size is None else size
    if offset < 0 or length <= 0 or offset + length > available:
        raise DmaRangeError(
            f"{length:#x} bytes from {offset:#x} on are not in memory of {available:#x} bytes",
            hint="map at most what is there",
        )
    return length


def _miscounted(iova: int, expected: int, unmapped: int) -> DmaMapError:
    hint = f"{expected:#x} bytes were mapped and the kernel has undone {unmapped:#x}: report it"
    return DmaMapError(errno.EIO, "unmap", iova, expected, hint=hint)
