"""Allocation of IO virtual addresses."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from vfiotool.errors import DmaMapError, DmaRangeError, IovaExhaustedError
from vfiotool.vfio.info import IovaRange

_TOP = 1 << 64
_FOUR_GIB = 1 << 32


class IovaAllocator:
    """Allocates the IOVAs of one address space, in whole pages.

    A mapping lies above 4 GiB by default, at the lowest place of the smallest free range that is large
    enough. This leaves the IOVAs below to devices that reach no others, breaks up few ranges, and keeps the
    IOMMU's tables small (some need more levels for higher IOVAs). A driver that omits its device's DMA mask
    faults at once this way, and not only when low IOVAs are used up. A mapping that must lie below 4 GiB lies
    as high as possible there, since the most limited device needs the lowest IOVAs.

    IOVA 0 is only for callers that reserve it: devices and drivers use 0 for "no address". The ranges to
    avoid are only for such callers, too.

    A call takes microseconds, however many ranges are free, unless the free ranges below 4 GiB have hundreds
    of sizes, or few of them have the alignment. Not thread-safe: threads that share it hold a lock around
    each call.
    """

    def __init__(self, ranges: Iterable[IovaRange], page_size: int, avoid: Iterable[IovaRange] = ()) -> None:
        """Start with all valid ranges of the kernel free; these ranges exclude what the kernel reserves.

        ``page_size`` is the smallest page of the IOMMU, in bytes. Parts of a page at the ends of a range are
        left out. ``allocate`` does not use the pages of ``avoid``; ``reserve`` does.
        """
        self.page_size = page_size
        self._allocated: dict[int, int] = {}
        self._pools = _Pools(ranges, avoid, page_size)
        self._free = self._pools.free

    @property
    def free_ranges(self) -> tuple[IovaRange, ...]:
        """The free ranges that ``allocate`` uses, lowest first; no two of them are adjacent."""
        return tuple(IovaRange(start, end) for start, end in self._free)

    def allocate(
        self, size: int, *, align: int | None = None, offset: int = 0, iova_max: int | None = None
    ) -> int:
        """Allocate ``size`` bytes of IOVAs, and return the first IOVA.

        Sizes are bytes, in whole pages. No size is rounded up, since a device would then reach beyond the
        caller's memory. ``IOVA % align == offset``; ``align`` is a power of two, by default a page. (2M and
        1G entries need IOVAs that are congruent to the virtual addresses.) ``iova_max`` is the highest IOVA
        that any of the bytes may have.

        Raises:
            IovaExhaustedError: no such IOVAs are free.
            DmaRangeError: an argument breaks the rules above.
        """
        page = self.page_size
        align = page if align is None else align
        if size <= 0 or (size | align | offset) % page or align & (align - 1) or not 0 <= offset < align:
            raise DmaRangeError(
                f"{size:#x} bytes cannot be allocated at a multiple of {align:#x} plus {offset:#x}",
                hint=f"use whole pages of {page:#x} bytes, and a power of two above the offset as alignment",
            )
        last = _TOP - 1 if iova_max is None else iova_max
        found = self._free.best_fit(size, _FOUR_GIB, last, align, offset)
        if found is None:
            found = self._free.highest(size, page, last, align, offset)
        if found is None:
            raise self._exhausted(size, align, iova_max)
        whole, iova = found
        self._free.cut(whole, iova, iova + size - 1)
        self._allocated[iova] = size
        return iova

    def reserve(self, iova: int, size: int) -> None:
        """Reserve these IOVAs, whole pages that the caller has chosen.

        Raises:
            DmaMapError: EEXIST a part of them is in use, EOVERFLOW they exceed 64 bits, EINVAL they are not
                whole pages inside of one valid range.
        """
        if size <= 0 or (iova | size) % self.page_size:
            raise DmaMapError(errno.EINVAL, "reserve", iova, size)
        end = iova + size - 1
        if not self._pools.cut(iova, end):
            raise DmaMapError(self._why_not_free(iova, end), "reserve", iova, size)
        self._allocated[iova] = size

    def free(self, iova: int, size: int | None = None) -> int:
        """Free all IOVAs that were allocated or reserved at ``iova``, and return their size.

        Raises:
            DmaMapError: ENOENT there is no such allocation, EINVAL its size is not ``size``.
        """
        had = self._allocated.get(iova)
        if had is None:
            raise DmaMapError(errno.ENOENT, "free", iova, size or 0)
        if size not in (None, had):
            raise DmaMapError(errno.EINVAL, "free", iova, size or 0)
        del self._allocated[iova]
        self._pools.add(iova, iova + had - 1)
        return had

    def set_ranges(self, ranges: Iterable[IovaRange], avoid: Iterable[IovaRange] = ()) -> None:
        """Use other valid ranges, as the kernel reports them once a further device is attached.

        Raises:
            DmaMapError: EINVAL, the allocation at ``iova`` lies outside of them; nothing changed.
        """
        pools = _Pools(ranges, avoid, self.page_size)
        for iova, size in self._allocated.items():
            if not pools.cut(iova, iova + size - 1):
                raise DmaMapError(errno.EINVAL, "set_ranges", iova, size)
        self._pools, self._free = pools, pools.free

    def _why_not_free(self, iova: int, end: int) -> int:
        if end >= _TOP:
            return errno.EOVERFLOW
        taken = any(at <= end and iova < at + size for at, size in self._allocated.items())
        return errno.EEXIST if taken else errno.EINVAL

    def _exhausted(self, size: int, align: int, iova_max: int | None) -> IovaExhaustedError:
        last = _TOP - 1 if iova_max is None else iova_max
        largest = max((min(end, last) - start + 1 for start, end in self._free), default=0)
        where = "" if iova_max is None else f" up to {iova_max:#x}"
        return IovaExhaustedError(
            f"no IOVAs are free for {size:#x} bytes aligned to {align:#x}{where}: "
            f"the largest free range there has {max(largest, 0):#x} bytes",
            size=size,
            iova_max=iova_max,
            hint="unmap memory that is no longer used, or map less at a time"
            + ("" if iova_max is None else "; pass iova_max only for a device that reaches no higher IOVAs"),
        )


class _FreeRanges:
    """Ranges that neither overlap nor touch, found by either end and by size."""

    def __init__(self) -> None:
        self._end_at: dict[int, int] = {}
        self._start_at: dict[int, int] = {}
        self._starts: dict[int, list[int]] = {}  # by size; each list is sorted
        self._sizes: list[int] = []  # sorted

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of each range, lowest first."""
        return iter(sorted(self._end_at.items()))

    def add(self, start: int, end: int) -> None:
        """Add a range that is not in the set, and join it with adjacent ranges."""
        before = self._start_at.get(start - 1)
        if before is not None:
            self._remove(before, start - 1)
            start = before
        after = self._end_at.get(end + 1)
        if after is not None:
            self._remove(end + 1, after)
            end = after
        self._insert(start, end)

    def cut(self, whole: int, start: int, end: int) -> None:
        """Remove a part of the range that starts at ``whole``."""
        last = self._end_at[whole]
        self._remove(whole, last)
        if whole < start:
            self._insert(whole, start - 1)
        if end < last:
            self._insert(end + 1, last)

    def holding(self, start: int, end: int) -> int | None:
        """Return the start of the range that contains all of these, or ``None``."""
        for size in self._sizes[bisect_left(self._sizes, end - start + 1) :]:
            starts = self._starts[size]
            at = bisect_right(starts, start) - 1
            if at >= 0 and end < starts[at] + size:
                return starts[at]
        return None

    def best_fit(self, size: int, first: int, last: int, align: int, offset: int) -> tuple[int, int] | None:
        """Return the smallest range with room between ``first`` and ``last``, and its lowest place."""
        for held in self._sizes[bisect_left(self._sizes, size) :]:
            starts = self._starts[held]
            at = bisect_right(starts, first)  # the range before may reach beyond first
            for whole in map(starts.__getitem__, range(at - 1 if at else 0, len(starts))):
                start = whole if whole > first else first
                place = start + (offset - start) % align
                if place > last - size + 1:
                    break
                if place + size <= whole + held:
                    return whole, place
        return None

    def highest(self, size: int, first: int, last: int, align: int, offset: int) -> tuple[int, int] | None:
        """Return the range of the highest place between ``first`` and ``last``, and that place."""
        found = None
        for held in self._sizes[bisect_left(self._sizes, size) :]:
            starts = self._starts[held]
            for whole in map(starts.__getitem__, range(bisect_right(starts, last) - 1, -1, -1)):
                end = whole + held if whole + held <= last else last + 1
                place = end - size - (end - size - offset) % align
                if place < first:
                    break
                if place >= whole:
                    found, first = (whole, place), place + 1
                    break
        return found

    def _insert(self, start: int, end: int) -> None:
        self._end_at[start] = end
        self._start_at[end] = start
        size = end - start + 1
        starts = self._starts.get(size)
        if starts is None:
            self._starts[size] = [start]
            insort(self._sizes, size)
        else:
            insort(starts, start)

    def _remove(self, start: int, end: int) -> None:
        del self._end_at[start]
        del self._start_at[end]
        size = end - start + 1
        starts = self._starts[size]
        if len(starts) == 1:
            del self._starts[size]
            del self._sizes[bisect_left(self._sizes, size)]
        else:
            del starts[bisect_left(starts, start)]


class _Pools:
    """The free pages: those to allocate from, and beside them those to avoid."""

    def __init__(self, ranges: Iterable[IovaRange], avoid: Iterable[IovaRange], page_size: int) -> None:
        self.free = _free_ranges(ranges, page_size)
        self._avoided = _FreeRanges()
        self._avoid = _pages_around(avoid, page_size)
        self._ends = [end for _start, end in self._avoid]
        for start, end in list(self.free):
            self.free.cut(start, start, end)
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add a range that was cut."""
        for pool, first, last in self._parts(start, end):
            pool.add(first, last)

    def cut(self, start: int, end: int) -> bool:
        """Remove a range if all of it is free. Return True if it was."""
        parts = []
        for pool, first, last in self._parts(start, end):
            whole = pool.holding(first, last)
            if whole is None:
                return False
            parts.append((pool, whole, first, last))
        for pool, whole, first, last in parts:
            pool.cut(whole, first, last)
        return True

    def _parts(self, start: int, end: int) -> Iterator[tuple[_FreeRanges, int, int]]:
        """Yield the parts of a range, each with its pool."""
        for first, last in self._avoid[bisect_left(self._ends, start) :]:
            if first > end:
                break
            if start < first:
                yield self.free, start, first - 1
                start = first
            yield self._avoided, start, min(end, last)
            start = last + 1
        if start <= end:
            yield self.free, start, end


def _free_ranges(ranges: Iterable[IovaRange], page_size: int) -> _FreeRanges:
    """Return the whole pages of these ranges, each page once."""
    free = _FreeRanges()
    beyond = 0
    for each in sorted(ranges, key=lambda each: each.start):
        start = max(beyond, -(-each.start // page_size) * page_size)
        beyond = max(beyond, (each.end + 1) // page_size * page_size)
        if start < beyond:
            free.add(start, beyond - 1)
    return free


def _pages_around(ranges: Iterable[IovaRange], page_size: int) -> list[tuple[int, int]]:
    """Return the whole pages that touch these ranges: start and end of each run of them, lowest first."""
    runs: list[tuple[int, int]] = []
    for each in sorted(ranges, key=lambda each: each.start):
        start, end = each.start // page_size * page_size, (each.end // page_size + 1) * page_size - 1
        if runs and start <= runs[-1][1] + 1:
            start, last = runs.pop()
            end = max(end, last)
        runs.append((start, end))
    return runs
