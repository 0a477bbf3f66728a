"""Many ranges to map in one call, in the shim's own form: 24 bytes per range, without copies in Python."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from vfiotool._shim import ffi, lib
from vfiotool.errors import DmaRangeError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_WORD = 8
_RANGE = 3 * _WORD
_room = ffi.new_allocator(should_clear_after_alloc=False)  # the memory is not touched before it is written


class Ranges:
    """An array of (vaddr, iova, size), each in bytes. It is immutable, so any thread may read it."""

    __slots__ = ("_owner", "array", "count")

    def __init__(self, array: Any, count: int, owner: object = None) -> None:
        """Wrap ``count`` ``struct vt_range``; ``owner`` is the object that holds their memory."""
        self.array = array
        self.count = count
        self._owner = owner

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int, int]] | ReadableBuffer) -> Ranges:
        """Make ranges from (vaddr, iova, size) tuples, or from a buffer of such triples of 64-bit words.

        A NumPy array of shape (n, 3) and type uint64 is used without a copy; it must not change while the
        ranges are in use.

        Raises:
            DmaRangeError: a number does not fit in 64 bits, or the buffer does not consist of triples.
        """
        try:
            view = memoryview(cast("ReadableBuffer", ranges))
        except TypeError:
            return cls.of(_words(cast("Iterable[tuple[int, int, int]]", ranges)))
        if not view.c_contiguous or view.nbytes % _RANGE or (view.itemsize != _WORD and view.itemsize != 1):
            raise DmaRangeError(
                "the buffer does not consist of (vaddr, iova, size) triples of 64-bit words",
                hint="pass a contiguous array of uint64 whose length is a multiple of three",
            )
        # Keep only the view: the garbage collector crashes on a view under a cffi buffer.
        return cls(ffi.cast("struct vt_range *", ffi.from_buffer(view)), view.nbytes // _RANGE, view)

    @classmethod
    def laid_out(cls, addresses: ReadableBuffer, size: int, align: int) -> tuple[Ranges, int]:
        """Make ranges of ``size`` bytes from their addresses, with IOVAs that start at 0.

        Ranges that are adjacent in memory are adjacent in IOVA space, in whatever order they are given. A
        run of at least ``align`` bytes starts at an IOVA that is congruent to its address modulo ``align``.
        Returns the ranges, ordered by address, and how many bytes of IOVA space they take.
        """
        words = ffi.from_buffer("uint64_t[]", addresses)
        ranges = cls(ffi.new("struct vt_range[]", len(words)), len(words))
        lib.vt_ranges_fill(ranges.array, words, len(words), size)
        return ranges, ranges.place(0, align)

    def place(self, iova: int, align: int) -> int:
        """Set the IOVAs of all ranges, from ``iova`` on; only for the caller of ``laid_out``.

        Raises:
            DmaRangeError: the ranges exceed 64 bits.
        """
        span = lib.vt_ranges_lay_out(self.array, self.count, iova, align)
        if span < 0:
            raise DmaRangeError("the ranges do not fit in 64 bits", hint="check their addresses and sizes")
        return span

    def merged(self) -> Ranges:
        """Return the runs: ranges that are adjacent in memory and in IOVA space become one."""
        return self._joined(lib.vt_ranges_merge)

    def spans(self) -> Ranges:
        """Return the IOVAs alone: ranges that are adjacent in IOVA space become one span.

        The addresses of a span have no meaning.
        """
        return self._joined(lib.vt_ranges_spans)

    def _joined(self, join: Callable[[Any, int, Any], int]) -> Ranges:
        room = _room("struct vt_range[]", self.count)
        count = join(self.array, self.count, room)
        if count == self.count:
            return Ranges(room, count)
        runs = _room("struct vt_range[]", count)
        ffi.memmove(runs, room, count * _RANGE)
        return Ranges(runs, count)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} ranges")
        one = self.array[index]
        return one.vaddr, one.iova, one.size

    @property
    def size(self) -> int:
        """The total number of bytes.

        Raises:
            DmaRangeError: the total exceeds 63 bits.
        """
        size = lib.vt_ranges_size(self.array, self.count)
        if size < 0:
            raise DmaRangeError("the ranges do not fit in 64 bits", hint="check their sizes")
        return size


def _words(ranges: Iterable[tuple[int, int, int]]) -> array.array[int]:
    try:
        tuples = list(ranges)
        words = array.array("Q", chain.from_iterable(tuples))
    except (OverflowError, TypeError) as error:
        raise _not_triples(str(error)) from None
    if len(words) != 3 * len(tuples):
        raise _not_triples("some do not have three numbers")
    return words


def _not_triples(why: str) -> DmaRangeError:
    return DmaRangeError(
        f"the ranges are not (vaddr, iova, size) of 64 bits each: {why}",
        hint="all three are numbers of bytes, from 0 to 2^64 - 1",
    )
