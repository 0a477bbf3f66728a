"""The expected results of map and unmap; tests of the lab compare them with kernels."""

from __future__ import annotations

import errno

import pytest

from vfiotool.stress.model.dma_mappings import Mappings

EACH = pytest.mark.parametrize("is_ioas", [False, True], ids=["type1v2", "ioas"])


def mappings(*ranges: tuple[int, int], is_ioas: bool) -> Mappings:
    """Return mappings of these ranges, each a first unit and a number of units."""
    made = Mappings(is_ioas=is_ioas)
    for first, count in ranges:
        assert made.map(first, count) == 0
        made.add(first, count)
    return made


@EACH
def test_an_overlapping_map_is_refused(is_ioas: bool) -> None:
    there = mappings((2, 3), is_ioas=is_ioas)
    for first, count in ((2, 3), (0, 3), (4, 1), (4, 9), (0, 9)):
        assert there.map(first, count) == errno.EEXIST
    for first, count in ((0, 2), (5, 1)):
        assert there.map(first, count) == 0
    assert there.all == [(2, 3)]


@EACH
def test_an_unmap_removes_all_mappings_inside_its_range(is_ioas: bool) -> None:
    there = mappings((4, 2), (0, 1), (8, 1), is_ioas=is_ioas)
    code, gone = there.unmap(0, 8)
    assert (code, gone, there.size(gone)) == (0, [0, 4], 3)
    there.drop(gone)
    assert (there.all, there.count) == ([(8, 1)], 1)


@EACH
@pytest.mark.parametrize(("first", "count"), [(0, 5), (4, 1), (5, 1), (5, 9), (3, 2)])
def test_no_mapping_is_cut(is_ioas: bool, first: int, count: int) -> None:
    there = mappings((4, 2), is_ioas=is_ioas)
    assert there.unmap(first, count) == (errno.ENOENT if is_ioas else errno.EINVAL, [])


def test_an_ioas_removes_the_mappings_below_one_that_would_be_cut() -> None:
    assert mappings((0, 1), (2, 1), (4, 2), is_ioas=True).unmap(0, 5) == (errno.ENOENT, [0, 2])
    assert mappings((0, 2), (2, 1), is_ioas=True).unmap(1, 5) == (errno.ENOENT, [])
    assert mappings((0, 1), (2, 1), (4, 2), is_ioas=False).unmap(0, 5) == (errno.EINVAL, [])


def test_an_unmap_of_nothing_fails_only_in_an_ioas() -> None:
    assert mappings((4, 2), is_ioas=True).unmap(0, 4) == (errno.ENOENT, [])
    assert mappings((4, 2), is_ioas=False).unmap(0, 4) == (0, [])
