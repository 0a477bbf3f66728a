"""DMA mappings of an IO address space, with their IOVAs and their owners."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from vfiotool._shim import ffi
from vfiotool.errors import ClosedError, DmaMapError, DmaRangeError, UnsupportedError
from vfiotool.vfio.dma.arena import Arena
from vfiotool.vfio.dma.iova import IovaAllocator
from vfiotool.vfio.dma.limits import has_memlock_limit, require_dma_entries, require_memlock
from vfiotool.vfio.dma.mapping import Batch, Buffer, Mapped, Mapping
from vfiotool.vfio.dma.memory import Memory, PageKind
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu.protocol import Iommu
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.uapi import ContainerIoctl, DmaMapFlags

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LARGE = 2 << 20
_LARGE_PAGES = (1 << 30, _LARGE)  # page sizes of IOMMUs beside the smallest
_MAP = ContainerIoctl.VFIO_IOMMU_MAP_DMA.name
_GONE = "its last device was closed or released, which removed all mappings"

# To combine flags takes longer than to allocate an IOVA.
_ACCESS = {
    (read, write): DmaMapFlags(DmaMapFlags.READ * read | DmaMapFlags.WRITE * write)
    for read in (False, True)
    for write in (False, True)
}

M = TypeVar("M", bound=Mapped)


class Addressed(Protocol):
    """Memory with a known address in this process: a ``Mmio``, a ``Memory``, a ``Buffer``."""

    @property
    def address(self) -> int:
        """The address of the first byte."""

    @property
    def size(self) -> int:
        """The number of bytes."""


class Dma:
    """DMA mappings of one address space. Threads may share it: disjoint calls run in parallel.

    Sizes, addresses and IOVAs are in bytes. ``read`` and ``write`` are the device's rights. Without ``iova``
    an IOVA is chosen, up to ``iova_max`` if given: the highest IOVA that the device can reach,
    ``(1 << bits) - 1``. A mapping lasts until it is closed, or until the last device is.

    All methods that map raise DmaMapError (see ``Iommu.map``), IovaExhaustedError, and ClosedError after the
    address space has ended.
    """

    def __init__(self, iommu: Iommu) -> None:
        self.iommu = iommu
        self._lock = threading.Lock()
        self._known: IovaAllocator | None = None
        self._avoid: tuple[IovaRange, ...] = ()
        self._mapped: dict[int, tuple[Mapped, int]] = {}  # by id, with the number of bytes
        self._limit: int | None = None  # how many mappings the kernel accepts, if it reports that
        self._used = 0  # mappings in use, counted here: to ask the kernel takes as long as to map
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
        """Allocate zeroed memory and map it. ``pages`` is as for ``Memory``.

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
        """Allocate memory for many small buffers, and map it in one call to the kernel.

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
        """Map the caller's own memory: an object with the buffer protocol, a mapped BAR, or an address.

        ``size`` bytes from ``offset`` on; all of the memory without a size. Address and size must be whole
        pages, as those of an ``mmap.mmap`` are. A buffer is held until the mapping is closed; memory that is
        passed by address must stay in place. A BAR belongs to another device, for DMA between devices.
        type1 and type1v2 map BARs; iommufd does since Linux 6.19, until the other device is reset, closed or
        its memory is turned off: then map the BAR again.

        Raises:
            DmaRangeError: the memory is too small, or an address comes without a size.
        """
        address, length, owner = _located(memory, size, offset, write=write)
        registers = (memory, offset) if isinstance(memory, Mmio) else None
        try:
            place = self._map(address, length, iova, iova_max, _access(read, write), registers)
        except BaseException:
            if owner is not None:
                owner.release()  # the traceback would otherwise hold the buffer open
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
        """Map a file's memory, usually a memfd's, which other processes may have mapped too.

        If the kernel can (iommufd, since 6.14), it pins whole folios of the file: the file is then not mapped
        into this process, and ``address`` is 0. Otherwise the file is mapped into this process first.

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
        """Map many (address, iova, size), all or none, in one call to the shim.

        Ranges that are adjacent in memory and in IOVA space become one mapping. The memory must stay in
        place. ``index`` of an error is the index of the failed range. See ``Ranges.of`` for input without a
        copy.

        Raises:
            DmaRangeError: the ranges do not consist of 64-bit numbers.
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

        IOVAs are chosen so that pieces that are adjacent in memory, in whatever order they are given, become
        one mapping. ``Batch.iova_of`` returns the IOVA of an address. The memory must stay in place.

        Raises:
            DmaRangeError: the pieces exceed 64 bits.
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
        """Remove all mappings at once, and return the number of bytes that they had.

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
        """Count a further device in the address space."""
        with self._lock:
            self._shares += 1

    def release(self) -> None:
        """Count a device that has left; the address space and all its mappings end with the last."""
        with self._lock:
            self._shares -= 1
            is_last = self._shares <= 0
        if is_last:
            self.iommu.close()
            self._forget_all()

    def refresh(self, avoid: Iterable[IovaRange] = ()) -> None:
        """Read the valid IOVA ranges again: each further device may narrow them.

        IOVAs are not chosen from ``avoid``, nor from the ranges of earlier calls.

        Raises:
            DmaMapError: a mapping lies outside of the valid ranges.
        """
        with self._lock:
            self._avoid = tuple(dict.fromkeys((*self._avoid, *avoid)))  # devices are opened again
            if self._known is not None:
                self._known.set_ranges(self.iommu.info().iova_ranges, self._avoid)

    @property
    def mapped(self) -> tuple[Mapped, ...]:
        """All current mappings."""
        with self._lock:
            return tuple(mapped for mapped, _size in self._mapped.values())

    def _map(
        self,
        address: int,
        size: int,
        iova: int | None,
        iova_max: int | None,
        access: DmaMapFlags,
        registers: tuple[Mmio, int] | None = None,
    ) -> int:
        """Map memory, or registers: a window, and an offset in the window."""
        if self._has_memlock_limit:
            require_memlock(_MAP, iova or 0, size)
        place = self._take(address, size, iova, iova_max)
        try:
            try:
                self.iommu.map(address, place, size, access)
            except DmaMapError as refusal:
                self._map_exported(registers, place, size, access, refusal)
        except BaseException:
            self._give_back([place])
            raise
        return place

    def _map_exported(
        self,
        registers: tuple[Mmio, int] | None,
        place: int,
        size: int,
        access: DmaMapFlags,
        refusal: DmaMapError,
    ) -> None:
        """Map registers that the kernel refuses by their address: by a dma-buf, or raise the refusal."""
        if refusal.errno != errno.EFAULT or registers is None or not self.iommu.can_map_files:
            raise refusal
        window, offset = registers
        try:
            fd = window.dma_buf(offset, size)
        except UnsupportedError:
            raise refusal from None
        try:
            self.iommu.map_file(fd, 0, place, size, access)
        finally:
            os.close(fd)  # the mapping holds the dma-buf

    def _map_ranges(self, ranges: Ranges, runs: Ranges, access: DmaMapFlags) -> int:
        """Map the ranges, and return their number of bytes."""
        size = runs.size
        if self._has_memlock_limit:
            require_memlock(_MAP, 0, size)
        left = None if self._limit is None else self._limit - self._used
        require_dma_entries(_MAP, left, len(runs), 0, size)
        self.iommu.map_ranges(ranges, access)
        return size

    def _take(self, address: int, size: int, iova: int | None, iova_max: int | None) -> int:
        """Reserve ``iova``, or allocate IOVAs at which large pages of the memory stay large."""
        with self._lock:
            allocator = self._allocator
            if iova is not None:
                allocator.reserve(iova, size)
                return iova
            align = next((page for page in _LARGE_PAGES if size >= page), allocator.page_size)
            return allocator.allocate(size, align=align, offset=address % align, iova_max=iova_max)

    def _take_all(self, ranges: Ranges, runs: Ranges) -> list[int]:
        """Reserve the IOVAs of all ranges or of none; ``index`` of an error is the first refused range."""
        with self._lock:
            try:
                return self._reserve_all(runs.spans())
            except DmaMapError:
                return self._reserve_all(ranges)  # one by one, to find the refused range

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
            if self._known is not None:  # all IOVAs may have been freed meanwhile
                for iova in places:
                    self._known.free(iova)

    @property
    def _allocator(self) -> IovaAllocator:
        """The allocator over the valid ranges, which the kernel has once a device is open.

        The caller holds the lock.
        """
        if self._known is None:
            if not self.iommu.closed and not self.iommu.attached:
                raise ClosedError(
                    f"no device is open in {self.iommu.name}", hint="open a device before memory is mapped"
                )
            info = self.iommu.info()
            self._known = IovaAllocator(info.iova_ranges, info.page_sizes & -info.page_sizes, self._avoid)
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
        """Remove the mapping in the kernel before its IOVAs are free for others."""
        if isinstance(mapped, Batch):
            unmapped = self.iommu.unmap_ranges(mapped.runs)
        else:
            unmapped = self.iommu.unmap(places[0], size)
        self._give_back(places)
        return unmapped

    def _forget_all(self, why: str = _GONE) -> None:
        """Mark all mappings as closed: the kernel has removed them."""
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
    """Return address and size of the memory to map, and the view that holds a buffer."""
    if isinstance(memory, int):
        if size is None:
            raise DmaRangeError("an address needs a size", hint="pass size=, in bytes")
        return memory + offset, size, None
    if hasattr(memory, "address") and hasattr(memory, "size"):
        length = _within(memory.size, size, offset)
        return memory.address + offset, length, None
    view = memoryview(memory)
    try:
        if not view.c_contiguous or (view.readonly and write):
            why = "is read-only, but the device may write" if view.readonly else "is not contiguous"
            raise DmaRangeError(f"the buffer {why}", hint="pass write=False, or a contiguous buffer")
        length = _within(view.nbytes, size, offset)
        return int(ffi.cast("uintptr_t", ffi.from_buffer(view))) + offset, length, view
    except BaseException:
        view.release()
        raise


def _within(available: int, size: int | None, offset: int) -> int:
    length = available - offset if size is None else size
    if offset < 0 or length <= 0 or offset + length > available:
        raise DmaRangeError(
            f"{length:#x} bytes at offset {offset:#x} exceed memory of {available:#x} bytes",
            hint="map at most the size of the memory",
        )
    return length


def _miscounted(iova: int, expected: int, unmapped: int) -> DmaMapError:
    hint = f"{expected:#x} bytes were mapped and the kernel unmapped {unmapped:#x}: please report this bug"
    return DmaMapError(errno.EIO, "unmap", iova, expected, hint=hint)
