"""Many ranges at once: merged, laid out and counted in C, against simple Python."""

from __future__ import annotations

import array
import gc
import mmap
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import examples
from vfiotool.errors import DmaRangeError
from vfiotool.vfio.iommu.ranges import Ranges

PAGE = mmap.PAGESIZE
TOP = 1 << 64
LARGE = 2 << 20

Range = tuple[int, int, int]

# Few places and sizes, so that adjacent ranges are as frequent as gaps; and the end of 64 bits.
places = st.one_of(st.integers(0, 12).map(lambda page: page * PAGE), st.just(TOP - PAGE))
sizes = st.sampled_from([0, PAGE, 2 * PAGE])
lists = st.lists(st.tuples(places, places, sizes), max_size=12)


def joined(ranges: list[Range], *, in_memory: bool) -> list[tuple[int, int]]:
    """Return IOVA and size of adjacent ranges."""
    found: list[Range] = []
    for vaddr, iova, size in ranges:
        if found and size and found[-1][2]:
            last_vaddr, last_iova, last_size = found[-1]
            follows = last_iova + last_size == iova < TOP
            if follows and (not in_memory or last_vaddr + last_size == vaddr < TOP):
                found[-1] = (last_vaddr, last_iova, last_size + size)
                continue
        found.append((vaddr, iova, size))
    return [(iova, size) for _vaddr, iova, size in found]


def fields(ranges: Ranges) -> list[tuple[int, int]]:
    return [(iova, size) for _vaddr, iova, size in ranges]


@examples(300)
@given(ranges=lists)
def test_adjacent_ranges_are_merged(ranges: list[Range]) -> None:
    given_ = Ranges.of(ranges)
    assert list(given_) == ranges
    assert given_.size == sum(size for _, _, size in ranges)
    assert fields(given_.merged()) == joined(ranges, in_memory=True)
    assert fields(given_.spans()) == joined(ranges, in_memory=False)


@examples(200)
@given(
    pages=st.lists(st.integers(0, 4 * LARGE // PAGE), unique=True, max_size=40),
    base=st.integers(0, 3).map(lambda number: number * LARGE),
)
def test_laid_out_ranges_stay_adjacent_and_do_not_overlap(pages: list[int], base: int) -> None:
    addresses = array.array("Q", [page * PAGE for page in pages])
    ranges, span = Ranges.laid_out(addresses, PAGE, LARGE)
    ranges.place(base, LARGE)
    laid = list(ranges)
    assert [vaddr for vaddr, _, _ in laid] == sorted(addresses)
    assert all(size == PAGE for _, _, size in laid)
    for (vaddr, iova, _), (next_vaddr, next_iova, _) in pairwise(laid):
        assert next_iova >= iova + PAGE
        assert (next_iova == iova + PAGE) or next_vaddr != vaddr + PAGE
    assert all(base <= iova <= base + span - PAGE for _, iova, _ in laid)


def test_a_run_of_large_pages_is_congruent() -> None:
    start = 5 * LARGE + 3 * PAGE
    count = 2 * LARGE // PAGE
    lone = 100 * LARGE
    addresses = array.array("Q", [lone, *(start + n * PAGE for n in reversed(range(count)))])
    ranges, span = Ranges.laid_out(addresses, PAGE, LARGE)
    runs = list(ranges.merged())
    assert [(vaddr, size) for vaddr, _, size in runs] == [(start, 2 * LARGE), (lone, PAGE)]
    assert runs[0][1] % LARGE == start % LARGE
    assert span == 3 * PAGE + 2 * LARGE + PAGE


def test_a_buffer_of_words_is_used_without_a_copy() -> None:
    words = array.array("Q", [PAGE, 0, PAGE, 2 * PAGE, PAGE, PAGE])
    ranges = Ranges.of(words)
    assert list(ranges) == [(PAGE, 0, PAGE), (2 * PAGE, PAGE, PAGE)]
    words[0] = 7 * PAGE
    assert ranges[0] == (7 * PAGE, 0, PAGE), "no copy"
    with pytest.raises(BufferError):
        words.append(0)


@pytest.mark.parametrize(
    "wrong",
    [
        array.array("Q", [1, 2]),
        array.array("I", [1, 2, 3, 4, 5, 6]),
        memoryview(array.array("Q", range(12)))[::2],
        [(1, 2)],
        [(TOP, 0, PAGE)],
        [(-1, 0, PAGE)],
        [("a", "b", "c")],
        7,
    ],
    ids=[
        "two words",
        "short words",
        "in pieces",
        "two numbers",
        "too large",
        "negative",
        "texts",
        "a number",
    ],
)
def test_invalid_ranges_are_refused(wrong: object) -> None:
    with pytest.raises(DmaRangeError):
        Ranges.of(wrong)  # type: ignore[arg-type]


def test_ranges_beyond_64_bits_are_refused() -> None:
    with pytest.raises(DmaRangeError):
        _ = Ranges.of([(0, 0, TOP - 1), (0, 0, PAGE)]).size
    with pytest.raises(DmaRangeError):
        Ranges.laid_out(array.array("Q", [TOP - PAGE]), 2 * PAGE, LARGE)


def test_an_index_past_the_end() -> None:
    ranges = Ranges.of([(0, 0, PAGE)])
    with pytest.raises(IndexError):
        ranges[1]
    with pytest.raises(IndexError):
        ranges[-1]
    assert len(Ranges.of([])) == 0


def test_ranges_over_a_buffer_can_be_collected_in_a_cycle() -> None:
    """An error's traceback makes such a cycle; the collector must not find a cffi buffer over a view."""
    for _ in range(100):
        cycle: list[object] = [Ranges.of(array.array("Q", [0, 0, PAGE]))]
        cycle.append(cycle)
    del cycle
    assert gc.collect() >= 100
