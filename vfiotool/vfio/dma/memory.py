"""Memory that is made for devices to reach: of large pages where there are any, and all present."""

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

_THP_SIZE = mmap.PAGESIZE * (mmap.PAGESIZE // 8)  # what one table of 8-byte entries maps

# What the mmap module does not name (include/uapi/asm-generic/mman-common.h, hugetlb_encode.h).
_MADV_WIPEONFORK = 18
_MAP_HUGETLB = 0x40000
_MAP_HUGE_SHIFT = 26


class PageKind(str, Enum):
    """The pages that memory is made of: the processor's own, transparent huge pages, those of a pool."""

    SMALL = "4K"
    THP = "thp"
    HUGE_2M = "2M"
    HUGE_1G = "1G"


_POOLED = {PageKind.HUGE_1G: 1 << 30, PageKind.HUGE_2M: 1 << 21}


class Memory:
    """Anonymous memory, zeroed and present, so that a map has only to pin it; a context manager.

    ``size`` is what was asked for, rounded up to whole pages of its ``kind``, and ``page_size`` is
    what they have; both are bytes. Of transparent huge pages the memory has as many as fit and the
    kernel finds, from its first byte on, and small pages otherwise: its size is whole small pages.

    ``source`` has the buffer protocol, and the memory starts ``offset`` bytes into it. What refers to
    it (a memoryview, a ctypes array, a NumPy array) may outlive ``close()``: memory is never unmapped
    below it, but freed with the last of them. Threads may share it as they may share a ``bytearray``.

    A forked child must not make the kernel copy a page that a device writes to, for the copy may be
    what the parent gets. So it sees zeros (MADV_WIPEONFORK, since 4.14) in place of small and
    transparent pages, and shares those of a pool.
    """

    def __init__(self, size: int, pages: PageKind | str = "auto") -> None:
        """Allocate ``size`` bytes or more.

        ``"auto"`` takes the largest pages that there are, by which no more than an eighth is wasted.

        Raises:
            DmaRangeError: no memory has that size.
            UsageError: there is no such kind of pages.
            UnsupportedError: this machine has no such pages, or not enough of them.
            KernelError: ENOMEM, there is not so much memory.
        """
        if size <= 0:
            raise DmaRangeError(f"there is no memory of {size} bytes", hint="ask for one byte or more")
        block = _best(size) if pages == "auto" else _block(size, _kind(pages))
        self.kind = block.kind
        self.page_size = block.page_size
        self.size = block.size
        self.offset = block.offset
        self._address = block.address
        self._source: mmap.mmap | None = block.source

    @property
    def closed(self) -> bool:
        """Say whether ``close()`` was called."""
        return self._source is None

    @property
    def source(self) -> mmap.mmap:
        """What has the buffer protocol, writable; the memory is ``size`` bytes from ``offset`` on.

        Raises:
            ClosedError: it is closed.
        """
        if self._source is None:
            raise ClosedError("the memory is closed", hint="allocate it again")
        return self._source

    @property
    def address(self) -> int:
        """Where the memory is in this process.

        Raises:
            ClosedError: it is closed.
        """
        _ = self.source
        return self._address

    def close(self) -> None:
        """Free it, now or with the last that refers to it; calls after the first do nothing."""
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
    """What was allocated: ``size`` bytes at ``address``, ``offset`` bytes into ``source``."""

    kind: PageKind
    page_size: int
    size: int
    source: mmap.mmap
    offset: int
    address: int


def _best(size: int) -> _Block:
    """Allocate memory of the largest pages that there are, and that waste no more than an eighth."""
    kinds = [kind for kind, page in _POOLED.items() if size >= page and -size % page <= size // 8]
    if size >= _THP_SIZE:
        kinds.append(PageKind.THP)
    for kind in kinds:
        with contextlib.suppress(UnsupportedError, KernelError):
            return _block(size, kind)
    return _block(size, PageKind.SMALL)


def _block(size: int, kind: PageKind) -> _Block:
    """Allocate memory of these pages, and have it present."""
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
    # Not every kernel places memory where a huge page can start. What does not belong to one is kept:
    # to the mmap object it is a part of what it unmaps one day.
    source = _mapped(size + _THP_SIZE - mmap.PAGESIZE, mmap.MAP_PRIVATE)
    offset = -_address(source) % _THP_SIZE
    return _present(_Block(kind, _THP_SIZE, size, source, offset, _address(source) + offset))


def _pooled(size: int, kind: PageKind, page: int) -> _Block:
    """Allocate memory of a pool's pages, which the kernel reserves at once, or refuses."""
    size = -(-size // page) * page
    flags = mmap.MAP_SHARED | _MAP_HUGETLB | (page.bit_length() - 1) << _MAP_HUGE_SHIFT
    try:
        source = _mapped(size, flags)
    except KernelError as error:
        _require_pool(size, kind, page)
        raise error from None
    return _present(_Block(kind, page, size, source, 0, _address(source)))


def _require_pool(size: int, kind: PageKind, page: int) -> None:
    """Raise the error that says what to write where, if it is for the pool's pages that there are too few."""
    tree = Tree()
    pool = f"{POOLS}/hugepages-{page >> 10}kB"
    counts = [tree.find(f"{pool}/{name}_hugepages") for name in ("nr", "free", "resv")]
    if None in counts:
        raise UnsupportedError(
            f"this machine has no {kind.value} pages",
            hint="use smaller ones: pages='auto' takes what is there",
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
        code = getattr(error, "errno", errno.ENOMEM)  # what overflows is more than any machine has
        raise KernelError(code, "mmap", f"{size:#x} bytes of memory") from None


def _present(block: _Block) -> _Block:
    """Set how the memory is backed and forked, and have all of it present; free it on failure."""
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
        raise UsageError(f"there are no pages called {pages!r}", hint=f"ask for auto, {known}") from None


def _address(source: mmap.mmap) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(source)))
