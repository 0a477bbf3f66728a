"""Memory for DMA: backed by large pages if there are any, and fully present."""

from __future__ import annotations

import contextlib
import errno
import mmap
from enum import Enum
from types import TracebackType
from typing import NamedTuple

from vfiotool._shim import ffi, lib
from vfiotool.errors import ClosedError, DmaRangeError, KernelError, UnsupportedError, UsageError
from vfiotool.host.checks.memory import POOLS, THP
from vfiotool.host.tree import Tree
from vfiotool.vfio.handle import checked

_THP_SIZE = mmap.PAGESIZE * (mmap.PAGESIZE // 8)  # the memory that one table of 8-byte entries maps

# Missing in the mmap module (include/uapi/asm-generic/mman-common.h, hugetlb_encode.h).
_MADV_WIPEONFORK = 18
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26


class PageKind(str, Enum):
    """Kinds of pages: the processor's small pages, transparent huge pages, and pages of a hugetlb pool."""

    SMALL = "4K"
    THP = "thp"
    HUGE_2M = "2M"
    HUGE_1G = "1G"


_POOLED = {PageKind.HUGE_1G: 1 << 30, PageKind.HUGE_2M: 1 << 21}


class Memory:
    """Anonymous memory, zeroed and present, so that a map has only to pin it; a context manager.

    ``size`` is the requested size, rounded up to whole pages of its ``kind``, and ``page_size`` is the size
    of these pages; both are in bytes. With transparent huge pages the memory has as many as fit and the
    kernel finds, from its first byte on, and small pages otherwise; its size is whole small pages.

    ``source`` has the buffer protocol, and the memory starts ``offset`` bytes into it. Objects that refer to
    it (a memoryview, a ctypes array, a NumPy array) may outlive ``close()``: the memory is not unmapped
    under them, but freed with the last of them. Threads may share it as they may share a ``bytearray``.

    A forked child must not make the kernel copy a page that a device writes to, since the parent could get
    the copy. Therefore the child sees zeros (MADV_WIPEONFORK, since 4.14) in place of small and transparent
    huge pages, and shares those of a pool.
    """

    def __init__(self, size: int, pages: PageKind | str = "auto") -> None:
        """Allocate at least ``size`` bytes.

        ``"auto"`` takes the largest available pages that waste at most an eighth of the memory.

        Raises:
            DmaRangeError: the size is not positive.
            UsageError: there is no such kind of pages.
            UnsupportedError: this machine has no such pages, or not enough of them.
            KernelError: ENOMEM, there is not enough memory.
        """
        if size <= 0:
            raise DmaRangeError(f"memory cannot have {size} bytes", hint="allocate at least 1 byte")
        block = _best(size) if pages == "auto" else _block(size, _kind(pages))
        self.kind = block.kind
        self.page_size = block.page_size
        self.size = block.size
        self.offset = block.offset
        self._address = block.address
        self._source: mmap.mmap | None = block.source

    @property
    def closed(self) -> bool:
        """Return True if ``close()`` was called."""
        return self._source is None

    @property
    def source(self) -> mmap.mmap:
        """The writable object with the buffer protocol; the memory is ``size`` bytes from ``offset`` on.

        Raises:
            ClosedError: the memory is closed.
        """
        if self._source is None:
            raise ClosedError("the memory is closed", hint="allocate it again")
        return self._source

    @property
    def address(self) -> int:
        """The address of the memory in this process.

        Raises:
            ClosedError: the memory is closed.
        """
        _ = self.source
        return self._address

    def close(self) -> None:
        """Free the memory, now or with the last object that refers to it; later calls do nothing."""
        source, self._source = self._source, None
        if source is not None:
            with contextlib.suppress(BufferError):
                source.close()

    def __enter__(self) -> Memory:
        _ = self.source
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.address:#x}"
        return f"<Memory of {self.size:#x} bytes in {self.kind.value} pages, {state}>"


class _Block(NamedTuple):
    """An allocation: ``size`` bytes at ``address``, ``offset`` bytes into ``source``."""

    kind: PageKind
    page_size: int
    size: int
    source: mmap.mmap
    offset: int
    address: int


def _best(size: int) -> _Block:
    """Allocate memory of the largest available pages that waste at most an eighth."""
    kinds = [kind for kind, page in _POOLED.items() if size >= page and -size % page <= size // 8]
    if size >= _THP_SIZE:
        kinds.append(PageKind.THP)
    for kind in kinds:
        with contextlib.suppress(UnsupportedError, KernelError):
            return _block(size, kind)
    return _block(size, PageKind.SMALL)


def _block(size: int, kind: PageKind) -> _Block:
    """Allocate memory of these pages, and make it present."""
    if kind in _POOLED:
        return _pooled(size, kind, _POOLED[kind])
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    if kind is PageKind.SMALL:
        source = _mapped(size, mmap.MAP_PRIVATE)
        return _present(_Block(kind, mmap.PAGESIZE, size, source, 0, _address(source)))
    if "[never]" in (Tree().find(THP) or "[never]"):
        raise UnsupportedError(
            "this machine has no transparent huge pages, or they are turned off",
            hint=f"echo madvise > {THP}, or use small pages",
        )
    # Not every kernel aligns memory to huge pages. The unaligned rest stays mapped: the mmap object
    # unmaps all of it at the end.
    source = _mapped(size + _THP_SIZE - mmap.PAGESIZE, mmap.MAP_PRIVATE)
    offset = -_address(source) % _THP_SIZE
    return _present(_Block(kind, _THP_SIZE, size, source, offset, _address(source) + offset))


def _pooled(size: int, kind: PageKind, page: int) -> _Block:
    """Allocate memory of a hugetlb pool, whose pages the kernel reserves at once, or refuses."""
    size = -(-size // page) * page
    flags = mmap.MAP_SHARED | _MAP_HUGETLB | (page.bit_length() - 1) << _MAP_HUGE_SHIFT
    try:
        source = _mapped(size, flags)
    except KernelError as error:
        _require_pool(size, kind, page)
        raise error from None
    return _present(_Block(kind, page, size, source, 0, _address(source)))


def _require_pool(size: int, kind: PageKind, page: int) -> None:
    """Raise an error with the value to write to nr_hugepages, if the pool has too few pages."""
    tree = Tree()
    pool = f"{POOLS}/hugepages-{page >> 10}kB"
    counts = [tree.find(f"{pool}/{name}_hugepages") for name in ("nr", "free", "resv")]
    if None in counts:
        raise UnsupportedError(
            f"this machine has no {kind.value} pages",
            hint="use smaller pages: pages='auto' takes the largest available",
        )
    total, free, reserved = (int(count or 0) for count in counts)
    available, needed = free - reserved, size // page
    if available < needed:
        at_boot = f", or boot with hugepagesz=1G hugepages={needed}" if kind is PageKind.HUGE_1G else ""
        raise UnsupportedError(
            f"{size:#x} bytes need {needed} pages of {kind.value}, and {available} are free",
            hint=f"echo {total + needed - available} > {pool}/nr_hugepages{at_boot}",
        )


def _mapped(size: int, flags: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", errno.ENOMEM)  # an overflow is more memory than any machine has
        raise KernelError(code, "mmap", f"{size:#x} bytes of memory") from None


def _present(block: _Block) -> _Block:
    """Set backing and fork behaviour of the memory, and make all of it present; free it on failure."""
    try:
        if block.kind not in _POOLED:
            _advise(block, mmap.MADV_HUGEPAGE if block.kind is PageKind.THP else mmap.MADV_NOHUGEPAGE)
            _advise(block, _MADV_WIPEONFORK)
        backing = _POOLED.get(block.kind, mmap.PAGESIZE)
        result = lib.vt_prefault(block.address, block.size, backing, 0)
        checked(result, "MADV_POPULATE_WRITE", f"{block.size:#x} bytes in {block.kind.value} pages")
    except BaseException:
        block.source.close()
        raise
    return block


def _advise(block: _Block, advice: int) -> None:
    with contextlib.suppress(OSError):  # EINVAL: a kernel without huge pages, or older than the advice
        block.source.madvise(advice, block.offset, block.size)


def _kind(pages: PageKind | str) -> PageKind:
    try:
        return PageKind(pages)
    except ValueError:
        known = ", ".join(kind.value for kind in PageKind)
        raise UsageError(f"there is no kind of pages {pages!r}", hint=f"use auto, {known}") from None


def _address(source: mmap.mmap) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(source)))
