"""Which IO virtual addresses are free, and which of them a mapping gets."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from vfiotool.errors import DmaMapError, DmaRangeError, IovaExhaustedError
from vfiotool.vfio.info import IovaRange

_TOP = 1 << 64
_FOUR_GIB = 1 << 32


class IovaAllocator:
    """Gives out the IOVAs of one address space, in whole pages.

    What a mapping gets lies above 4 GiB, in the smallest free range that has room for it, and as low
    there as it can: the IOVAs below are left to devices that reach no others, few ranges are broken
    up, and the IOMMU's tables stay small (some have more levels the higher the IOVAs go). A driver
    that forgot to give its device's mask thus faults at once, and not only when low IOVAs are used up.
    Where a mapping must lie below 4 GiB, it lies as high as it can, since the lowest IOVAs are what
    the most limited device needs.

    IOVA 0 is only for those who reserve it: devices, and drivers, take it for "no address".

    A call takes microseconds however many ranges are free, unless they are of hundreds of sizes below
    4 GiB, or few of them are aligned as asked. Not for several threads at once: who shares it holds a
    lock around each call.
    """

    def __init__(self, ranges: Iterable[IovaRange], page_size: int) -> None:
        """Start with all of the kernel's valid ranges free, which leave out what it reserves.

        ``page_size`` is the smallest of the IOMMU, in bytes; what is less than a page at the ends of
        a range is left out.
        """
        self.page_size = page_size
        self._allocated: dict[int, int] = {}
        self._free = _free_ranges(ranges, page_size)

    @property
    def free_ranges(self) -> tuple[IovaRange, ...]:
        """Return what is free, lowest first; no two of the ranges are neighbours."""
        return tuple(IovaRange(start, end) for start, end in self._free)

    def allocate(
        self, size: int, *, align: int | None = None, offset: int = 0, iova_max: int | None = None
    ) -> int:
        """Return the first of ``size`` bytes of IOVAs that are free, and take them.

        Sizes are bytes, and whole pages: none is rounded up, since a device would then reach beyond
        the memory that the caller has. ``IOVA % align == offset``; ``align`` is a power of two, and a
        page unless given. (For 2M or 1G entries IOVAs must be congruent to the virtual addresses.)
        ``iova_max`` is the highest IOVA that any of the bytes may have.

        Raises:
            IovaExhaustedError: no such IOVAs are free.
            DmaRangeError: the numbers are not as said here.
        """
        page = self.page_size
        align = page if align is None else align
        if size <= 0 or (size | align | offset) % page or align & (align - 1) or not 0 <= offset < align:
            raise DmaRangeError(
                f"no IOVAs can be {size:#x} bytes at a multiple of {align:#x} plus {offset:#x}",
                hint=f"ask for whole pages of {page:#x} bytes, and for a power of two above the offset",
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
        """Take these IOVAs, whole pages that the caller has chosen.

        Raises:
            DmaMapError: EEXIST a part of them is taken, EOVERFLOW they do not fit in 64 bits, EINVAL
                they are not whole pages inside of one of the ranges.
        """
        if size <= 0 or (iova | size) % self.page_size:
            raise DmaMapError(errno.EINVAL, "reserve", iova, size)
        end = iova + size - 1
        whole = self._free.holding(iova, end)
        if whole is None:
            raise DmaMapError(self._why_not_free(iova, end), "reserve", iova, size)
        self._free.cut(whole, iova, end)
        self._allocated[iova] = size

    def free(self, iova: int, size: int | None = None) -> int:
        """Give back what was allocated or reserved at an IOVA, all of it; return its size.

        Raises:
            DmaMapError: ENOENT nothing was, EINVAL it has another size than ``size``.
        """
        had = self._allocated.get(iova)
        if had is None:
            raise DmaMapError(errno.ENOENT, "free", iova, size or 0)
        if size not in (None, had):
            raise DmaMapError(errno.EINVAL, "free", iova, size or 0)
        del self._allocated[iova]
        self._free.add(iova, iova + had - 1)
        return had

    def set_ranges(self, ranges: Iterable[IovaRange]) -> None:
        """Go on with other ranges, as the kernel has them once a further device is attached.

        Raises:
            DmaMapError: EINVAL, what is allocated at ``iova`` lies outside of them; nothing changed.
        """
        free = _free_ranges(ranges, self.page_size)
        for iova, size in self._allocated.items():
            end = iova + size - 1
            whole = free.holding(iova, end)
            if whole is None:
                raise DmaMapError(errno.EINVAL, "set_ranges", iova, size)
            free.cut(whole, iova, end)
        self._free = free

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
            hint="unmap what is no longer used, or map less at a time"
            + ("" if iova_max is None else "; give an iova_max only for a device that reaches no further"),
        )


class _FreeRanges:
    """Ranges of which no two overlap or are neighbours, found by either end and by size."""

    def __init__(self) -> None:
        self._end_at: dict[int, int] = {}
        self._start_at: dict[int, int] = {}
        self._starts: dict[int, list[int]] = {}  # by size; each list is sorted
        self._sizes: list[int] = []  # sorted

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of each range, lowest first."""
        return iter(sorted(self._end_at.items()))

    def add(self, start: int, end: int) -> None:
        """Add what is not in it, and join it with its neighbours."""
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
        """Take a part out of the range that starts at ``whole``."""
        last = self._end_at[whole]
        self._remove(whole, last)
        if whole < start:
            self._insert(whole, start - 1)
        if end < last:
            self._insert(end + 1, last)

    def holding(self, start: int, end: int) -> int | None:
        """Return where the range starts that has all of these, or ``None``."""
        for size in self._sizes[bisect_left(self._sizes, end - start + 1) :]:
            starts = self._starts[size]
            at = bisect_right(starts, start) - 1
            if at >= 0 and end < starts[at] + size:
                return starts[at]
        return None

    def best_fit(self, size: int, first: int, last: int, align: int, offset: int) -> tuple[int, int] | None:
        """Return the smallest range with room between ``first`` and ``last``, and the lowest place in it."""
        for held in self._sizes[bisect_left(self._sizes, size) :]:
            starts = self._starts[held]
            at = bisect_right(starts, first)  # but the range before it may reach beyond first
            for whole in map(starts.__getitem__, range(at - 1 if at else 0, len(starts))):
                start = whole if whole > first else first
                place = start + (offset - start) % align
                if place > last - size + 1:
                    break
                if place + size <= whole + held:
                    return whole, place
        return None

    def highest(self, size: int, first: int, last: int, align: int, offset: int) -> tuple[int, int] | None:
        """Return the highest place between ``first`` and ``last``, after the range that it is in."""
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
