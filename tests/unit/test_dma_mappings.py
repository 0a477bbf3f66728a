"""What a kernel must say to a map or an unmap, by bookkeeping; the lab holds it against kernels."""

from __future__ import annotations

import errno

import pytest

from vfiotool.stress.model.dma_mappings import Mappings

EACH = pytest.mark.parametrize("is_ioas", [False, True], ids=["type1v2", "ioas"])


def mappings(*ranges: tuple[int, int], is_ioas: bool) -> Mappings:
    """Return what has these mapped: the first unit of each, and how many."""
    made = Mappings(is_ioas=is_ioas)
    for first, count in ranges:
        assert made.map(first, count) == 0
        made.add(first, count)
    return made


@EACH
def test_what_overlaps_is_refused(is_ioas: bool) -> None:
    there = mappings((2, 3), is_ioas=is_ioas)
    for first, count in ((2, 3), (0, 3), (4, 1), (4, 9), (0, 9)):
        assert there.map(first, count) == errno.EEXIST
    for first, count in ((0, 2), (5, 1)):
        assert there.map(first, count) == 0
    assert there.all == [(2, 3)]


@EACH
def test_an_unmap_takes_all_that_is_inside(is_ioas: bool) -> None:
    there = mappings((4, 2), (0, 1), (8, 1), is_ioas=is_ioas)
    code, gone = there.unmap(0, 8)
    assert (code, gone, there.size(gone)) == (0, [0, 4], 3)
    there.drop(gone)
    assert (there.all, there.count) == ([(8, 1)], 1)


@EACH
@pytest.mark.parametrize(("first", "count"), [(0, 5), (4, 1), (5, 1), (5, 9), (3, 2)])
def test_what_would_be_cut_stays(is_ioas: bool, first: int, count: int) -> None:
    there = mappings((4, 2), is_ioas=is_ioas)
    assert there.unmap(first, count) == (errno.ENOENT if is_ioas else errno.EINVAL, [])


def test_an_ioas_undoes_what_is_below_the_one_that_would_be_cut() -> None:
    assert mappings((0, 1), (2, 1), (4, 2), is_ioas=True).unmap(0, 5) == (errno.ENOENT, [0, 2])
    assert mappings((0, 2), (2, 1), is_ioas=True).unmap(1, 5) == (errno.ENOENT, [])
    assert mappings((0, 1), (2, 1), (4, 2), is_ioas=False).unmap(0, 5) == (errno.EINVAL, [])


def test_only_an_ioas_misses_what_is_not_there() -> None:
    assert mappings((4, 2), is_ioas=True).unmap(0, 4) == (errno.ENOENT, [])
    assert mappings((4, 2), is_ioas=False).unmap(0, 4) == (0, [])
