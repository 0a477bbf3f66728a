"""The IOVA allocator against a simple model of pages, and at the limits of IOVAs."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.strategies import examples
from vfiotool.errors import DmaMapError, DmaRangeError, IovaExhaustedError
from vfiotool.vfio.dma.iova import IovaAllocator
from vfiotool.vfio.info import IovaRange

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
FOUR_GIB = 4 * GIB
TOP = 1 << 64

# The ranges of VT-d: 39 bits without the addresses of interrupt messages.
VTD = (IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, (1 << 39) - 1))


def fails(code: int, action: Callable[[], object]) -> DmaMapError:
    with pytest.raises(DmaMapError) as caught:
        action()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
    return caught.value


def test_iovas_are_adjacent_above_4_gib() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    assert [iovas.allocate(size * PAGE) for size in (1, 2, 1)] == [
        FOUR_GIB,
        FOUR_GIB + PAGE,
        FOUR_GIB + 3 * PAGE,
    ]


def test_a_limited_device_gets_its_highest_iovas() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    assert iovas.allocate(PAGE, iova_max=(1 << 33) - 1) == FOUR_GIB
    assert iovas.allocate(PAGE, iova_max=(1 << 32) - 1) == (1 << 32) - PAGE
    assert iovas.allocate(PAGE, iova_max=(1 << 28) - 1) == (1 << 28) - PAGE
    assert iovas.allocate(PAGE, iova_max=(1 << 28) - 1) == (1 << 28) - 2 * PAGE
    assert iovas.allocate(PAGE, iova_max=1 << 28) == (1 << 28) - 3 * PAGE
    assert iovas.allocate(PAGE, iova_max=FOUR_GIB + 2 * PAGE - 1) == FOUR_GIB + PAGE


def test_low_iovas_are_used_last_without_a_limit() -> None:
    iovas = IovaAllocator([IovaRange(0, FOUR_GIB + 2 * PAGE - 1)], PAGE)
    assert iovas.allocate(2 * PAGE) == FOUR_GIB
    assert iovas.allocate(PAGE) == FOUR_GIB - PAGE
    iovas.free(FOUR_GIB)
    iovas.free(FOUR_GIB - PAGE)
    assert iovas.allocate(3 * PAGE) == FOUR_GIB - PAGE  # a range across 4 GiB


def test_above_4_gib_the_smallest_range_with_room_is_taken() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    held = [iovas.allocate(size * PAGE) for size in (1, 3, 1, 2, 1, 3, 1)]
    for iova in held[1::2]:
        iovas.free(iova)
    assert iovas.allocate(2 * PAGE) == held[3]
    assert iovas.allocate(2 * PAGE) == held[1]
    assert iovas.allocate(3 * PAGE) == held[5]


def test_below_4_gib_the_highest_range_with_room_is_taken() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    iovas.reserve(256 * MIB, PAGE)  # below it is less than above it
    iovas.reserve(2 * GIB, PAGE)
    iovas.reserve(2 * GIB + 2 * PAGE, PAGE)
    assert iovas.allocate(GIB, iova_max=0xFEDFFFFF) == 0xFEE00000 - GIB
    assert iovas.allocate(PAGE, iova_max=3 * GIB) == 0xFEE00000 - GIB - PAGE
    assert iovas.allocate(PAGE, iova_max=2 * GIB + 2 * PAGE) == 2 * GIB + PAGE


def test_iova_0_is_only_reserved_explicitly() -> None:
    iovas = IovaAllocator([IovaRange(0, 3 * PAGE - 1)], PAGE)
    assert {iovas.allocate(PAGE), iovas.allocate(PAGE)} == {PAGE, 2 * PAGE}
    with pytest.raises(IovaExhaustedError):
        iovas.allocate(PAGE)
    iovas.reserve(0, PAGE)
    assert iovas.free_ranges == ()
    iovas.free(0)
    assert list(iovas.free_ranges) == [IovaRange(0, PAGE - 1)]


@pytest.mark.parametrize("bits", [32, 39, 48, 52, 57, 64])
def test_the_last_page(bits: int) -> None:
    last = (1 << bits) - 1
    iovas = IovaAllocator([IovaRange(0, last)], PAGE)
    iovas.reserve(last + 1 - PAGE, PAGE)
    fails(errno.EEXIST, lambda: iovas.reserve(last + 1 - PAGE, PAGE))
    code = errno.EOVERFLOW if bits == 64 else errno.EINVAL
    fails(code, lambda: iovas.reserve(last + 1, PAGE))
    assert iovas.free_ranges == (IovaRange(0, last - PAGE),)
    assert iovas.free(last + 1 - PAGE) == PAGE

    low = IovaRange(last + 1 - 2 * PAGE, last)
    iovas.set_ranges([low])
    assert sorted([iovas.allocate(PAGE), iovas.allocate(PAGE)]) == [low.start, low.start + PAGE]


def test_ranges_to_avoid_are_only_reserved_explicitly() -> None:
    bar = IovaRange(FOUR_GIB + 1, FOUR_GIB + PAGE + 0x7FF)  # a part of two pages
    iovas = IovaAllocator(VTD, PAGE, [bar])
    assert iovas.allocate(PAGE) == FOUR_GIB + 2 * PAGE
    iovas.reserve(FOUR_GIB + PAGE, PAGE)
    fails(errno.EEXIST, lambda: iovas.reserve(FOUR_GIB, 2 * PAGE))
    assert iovas.free(FOUR_GIB + PAGE) == PAGE
    assert iovas.allocate(PAGE) == FOUR_GIB + 3 * PAGE
    iovas.reserve(FOUR_GIB - PAGE, 3 * PAGE)
    iovas.free(FOUR_GIB - PAGE)
    iovas.set_ranges(VTD)
    assert iovas.allocate(2 * PAGE) == FOUR_GIB


def test_a_whole_range_can_be_allocated() -> None:
    iovas = IovaAllocator([IovaRange(0, TOP - 1)], PAGE)
    iovas.reserve(0, TOP)
    assert iovas.free_ranges == ()
    assert iovas.free(0, TOP) == TOP
    assert iovas.allocate(TOP - PAGE) == PAGE


@pytest.mark.parametrize(("align", "offset"), [(2 * MIB, 0), (2 * MIB, PAGE), (GIB, 0), (GIB, GIB - 2 * MIB)])
@pytest.mark.parametrize("iova_max", [None, (1 << 32) - 1])
def test_alignment_as_large_pages_need_it(align: int, offset: int, iova_max: int | None) -> None:
    iovas = IovaAllocator(VTD, PAGE)
    iovas.allocate(PAGE)
    iovas.allocate(PAGE, iova_max=(1 << 32) - 1)
    found = [iovas.allocate(2 * MIB, align=align, offset=offset, iova_max=iova_max) for _ in range(2)]
    assert [iova % align for iova in found] == [offset, offset]
    assert abs(found[0] - found[1]) == max(align, 2 * MIB)


@pytest.mark.parametrize(
    ("size", "align", "offset"),
    [
        (0, PAGE, 0),
        (-PAGE, PAGE, 0),
        (1, PAGE, 0),
        (PAGE + 1, PAGE, 0),
        (PAGE, 0, 0),
        (PAGE, 64, 0),
        (PAGE, 3 * PAGE, 0),
        (PAGE, -PAGE, 0),
        (PAGE, 2 * PAGE, 64),
        (PAGE, 2 * PAGE, 2 * PAGE),
        (PAGE, 2 * PAGE, -PAGE),
    ],
)
def test_sizes_are_not_rounded_to_pages(size: int, align: int, offset: int) -> None:
    iovas = IovaAllocator(VTD, PAGE)
    with pytest.raises(DmaRangeError, match=f"{size:#x} bytes") as caught:
        iovas.allocate(size, align=align, offset=offset)
    assert "0x1000" in caught.value.hint
    assert iovas.free_ranges == VTD


@pytest.mark.parametrize(
    ("iova", "size", "code"),
    [
        (PAGE, 0, errno.EINVAL),
        (PAGE, -PAGE, errno.EINVAL),
        (PAGE, 1, errno.EINVAL),
        (1, PAGE, errno.EINVAL),
        (-PAGE, PAGE, errno.EINVAL),
        (0xFEE00000, PAGE, errno.EINVAL),
        (0xFEDFF000, 2 * PAGE, errno.EINVAL),
        (1 << 39, PAGE, errno.EINVAL),
        (TOP - PAGE, 2 * PAGE, errno.EOVERFLOW),
        (TOP, PAGE, errno.EOVERFLOW),
        (GIB, PAGE, errno.EEXIST),
        (GIB - PAGE, 2 * PAGE, errno.EEXIST),
        (GIB + PAGE, 2 * PAGE, errno.EEXIST),
        (GIB - PAGE, 4 * PAGE, errno.EEXIST),
    ],
)
def test_invalid_iovas_cannot_be_reserved(iova: int, size: int, code: int) -> None:
    iovas = IovaAllocator(VTD, PAGE)
    iovas.reserve(GIB, 2 * PAGE)
    before = iovas.free_ranges
    error = fails(code, lambda: iovas.reserve(iova, size))
    assert (error.iova, error.size) == (iova, size)
    assert iovas.free_ranges == before


def test_only_what_was_allocated_can_be_freed() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    iova = iovas.allocate(2 * PAGE)
    fails(errno.ENOENT, lambda: iovas.free(iova + PAGE))
    fails(errno.EINVAL, lambda: iovas.free(iova, PAGE))
    assert iovas.free(iova, 2 * PAGE) == 2 * PAGE
    fails(errno.ENOENT, lambda: iovas.free(iova))
    assert iovas.free_ranges == VTD


def test_exhaustion_names_the_largest_free_range_and_changes_nothing() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    with pytest.raises(
        IovaExhaustedError, match=r"0x20000000 bytes .* up to 0xfffffff: .* 0x10000000"
    ) as caught:
        iovas.allocate(512 * MIB, iova_max=(1 << 28) - 1)
    assert (caught.value.size, caught.value.iova_max) == (512 * MIB, (1 << 28) - 1)
    assert "iova_max" in caught.value.hint
    with pytest.raises(IovaExhaustedError, match="0x10000000000 bytes") as caught:
        iovas.allocate(1 << 40)
    assert caught.value.iova_max is None
    assert "iova_max" not in caught.value.hint
    for iova_max in (0, PAGE, 2 * PAGE - 2, -1):
        with pytest.raises(IovaExhaustedError):
            iovas.allocate(PAGE, iova_max=iova_max)
    assert iovas.free_ranges == VTD
    with pytest.raises(IovaExhaustedError, match="has 0x0 bytes"):
        IovaAllocator([], PAGE).allocate(PAGE)


def test_a_further_device_narrows_the_ranges() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    kept = iovas.allocate(PAGE)
    iovas.reserve(1 << 38, PAGE)
    before = iovas.free_ranges
    narrow = IovaRange(PAGE, (1 << 36) - 1)
    error = fails(errno.EINVAL, lambda: iovas.set_ranges([narrow]))
    assert error.iova == 1 << 38
    assert "with the added device" in str(error)
    assert iovas.free_ranges == before
    iovas.free(1 << 38)
    iovas.set_ranges([narrow])
    assert iovas.free_ranges == (IovaRange(PAGE, kept - 1), IovaRange(kept + PAGE, narrow.end))
    iovas.free(kept)
    assert list(iovas.free_ranges) == [narrow]


def test_ranges_in_any_order_and_of_less_than_whole_pages() -> None:
    ranges = [
        IovaRange(5 * PAGE - 1, 7 * PAGE),
        IovaRange(9 * PAGE + 1, 10 * PAGE - 2),
        IovaRange(1, 3 * PAGE - 1),
        IovaRange(7 * PAGE, 8 * PAGE - 1),
        IovaRange(6 * PAGE, 7 * PAGE - 1),
    ]
    assert IovaAllocator(ranges, PAGE).free_ranges == (
        IovaRange(PAGE, 3 * PAGE - 1),
        IovaRange(5 * PAGE, 8 * PAGE - 1),
    )
    assert IovaAllocator([IovaRange(1, TOP - 1)], 16 * PAGE).free_ranges == (IovaRange(16 * PAGE, TOP - 1),)


def test_many_holes_are_filled_and_joined() -> None:
    iovas = IovaAllocator(VTD, PAGE)
    held = [iovas.allocate(PAGE) for _ in range(2001)]
    holes = held[1::2]
    for iova in holes:
        iovas.free(iova)
    assert len(iovas.free_ranges) == 3 + len(holes)
    larger = [iovas.allocate(2 * PAGE) for _ in range(500)]
    assert min(larger) > max(held)
    assert {iovas.allocate(PAGE) for _ in holes} == set(holes)
    everything = [*held, *larger]
    random.Random(4).shuffle(everything)  # noqa: S311 - the test must be repeatable
    for iova in everything:
        iovas.free(iova)
    assert iovas.free_ranges == VTD


# Few pages around each boundary: 0, 4 GiB, the usual last IOVA, and the last of 64 bits.
WINDOWS = (0, FOUR_GIB // PAGE - 8, (1 << 39) // PAGE - 16, TOP // PAGE - 16)
PAGES = [start + page for start in WINDOWS for page in range(16)]
page_sets = st.sets(st.sampled_from(PAGES), min_size=24).map(frozenset)
few_pages = st.sets(st.sampled_from(PAGES), max_size=12).map(frozenset)


def joined(pages: frozenset[int]) -> tuple[IovaRange, ...]:
    """Return the ranges of a set of pages, from each page alone."""
    starts = sorted(page * PAGE for page in pages if page - 1 not in pages)
    ends = sorted((page + 1) * PAGE - 1 for page in pages if page + 1 not in pages)
    return tuple(map(IovaRange, starts, ends))


class Model(RuleBasedStateMachine):
    """The allocator, compared with sets of pages."""

    @initialize(valid=page_sets, avoided=few_pages)
    def start(self, valid: frozenset[int], avoided: frozenset[int]) -> None:
        self.valid, self.avoided = valid, avoided
        self.held: dict[int, frozenset[int]] = {}
        self.iovas = IovaAllocator(joined(valid), PAGE, joined(avoided))

    @property
    def free(self) -> frozenset[int]:
        return self.valid.difference(*self.held.values())

    @rule(
        size=st.integers(1, 6),
        order=st.integers(0, 3),
        residue=st.integers(0, 7),
        iova_max=st.none()
        | st.builds(
            lambda page, byte: page * PAGE + byte, st.sampled_from(PAGES), st.sampled_from([0, PAGE - 1])
        ),
    )
    def allocate(self, size: int, order: int, residue: int, iova_max: int | None) -> None:
        align, residue = 1 << order, residue % (1 << order)
        free = self.free - self.avoided
        last = TOP - 1 if iova_max is None else iova_max
        possible = [
            page
            for page in free
            if page and page % align == residue
            if all(page + more in free for more in range(size))
            if (page + size) * PAGE - 1 <= last
        ]
        wanted = partial(
            self.iovas.allocate, size * PAGE, align=align * PAGE, offset=residue * PAGE, iova_max=iova_max
        )
        if not possible:
            with pytest.raises(IovaExhaustedError):
                wanted()
            return
        page, rest = divmod(wanted(), PAGE)
        assert rest == 0
        assert page in possible
        if page * PAGE < FOUR_GIB:
            assert page == max(possible)
        self.held[page] = frozenset(range(page, page + size))

    @rule(page=st.sampled_from(PAGES), size=st.integers(1, 6))
    def reserve(self, page: int, size: int) -> None:
        pages = frozenset(range(page, page + size))
        if pages <= self.free:
            self.iovas.reserve(page * PAGE, size * PAGE)
            self.held[page] = pages
            return
        with pytest.raises(DmaMapError) as caught:
            self.iovas.reserve(page * PAGE, size * PAGE)
        if (page + size) * PAGE > TOP:
            assert caught.value.errno == errno.EOVERFLOW
        else:
            taken = not pages.isdisjoint(frozenset().union(*self.held.values()))
            assert caught.value.errno == (errno.EEXIST if taken else errno.EINVAL)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.held)))
        assert self.iovas.free(page * PAGE) == len(self.held.pop(page)) * PAGE

    @rule(page=st.sampled_from(PAGES))
    def give_back_what_was_never_taken(self, page: int) -> None:
        if page not in self.held:
            fails(errno.ENOENT, lambda: self.iovas.free(page * PAGE))

    @rule(valid=page_sets, avoided=few_pages)
    def set_ranges(self, valid: frozenset[int], avoided: frozenset[int]) -> None:
        lost = {page for page, pages in self.held.items() if not pages <= valid}
        if not lost:
            self.iovas.set_ranges(joined(valid), joined(avoided))
            self.valid, self.avoided = valid, avoided
            return
        error = fails(errno.EINVAL, lambda: self.iovas.set_ranges(joined(valid), joined(avoided)))
        assert error.iova // PAGE in lost

    @invariant()
    def is_as_the_model(self) -> None:
        if hasattr(self, "iovas"):
            assert self.iovas.free_ranges == joined(self.free - self.avoided)

    def teardown(self) -> None:
        for page in list(getattr(self, "held", ())):
            self.iovas.free(page * PAGE)
            del self.held[page]
            self.is_as_the_model()


TestModel = Model.TestCase
TestModel.settings = settings(examples(40), stateful_step_count=30)
