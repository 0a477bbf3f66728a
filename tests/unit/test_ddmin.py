"""Delta debugging: what is left fails, in its order, and nothing of it can go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.stress.reproduce.ddmin import shrink

LENGTHS = st.integers(min_value=0, max_value=40)


def is_within(part: Sequence[int], whole: Sequence[int]) -> bool:
    """Say whether it is a subsequence."""
    rest = iter(whole)
    return all(one in rest for one in part)


class Fails:
    """Fails where it has one of some sets, in whatever company; counts what it is asked."""

    def __init__(self, *sets: frozenset[int]) -> None:
        self.sets = sets
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, calls: Sequence[int]) -> bool:
        self.asked.append(tuple(calls))
        return any(one <= set(calls) for one in self.sets)


@given(st.data(), LENGTHS)
def test_what_is_left_is_the_least(data: st.DataObject, length: int) -> None:
    calls = list(range(length))
    some = st.frozensets(st.sampled_from(calls)) if calls else st.just(frozenset[int]())
    fails = Fails(*data.draw(st.lists(some, min_size=1, max_size=3)))
    left = shrink(calls, fails)
    assert frozenset(left) in fails.sets
    assert is_within(left, calls)
    assert len(fails.asked) == len(set(fails.asked))


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(0, 2**32))
def test_nothing_of_it_can_go_even_where_less_may_pass_and_lesser_fail(calls: list[int], salt: int) -> None:
    """Whether a part fails has no rule here: as with a bug that another operation hides."""

    def fails(part: Sequence[int]) -> bool:
        return list(part) == calls or hash((salt, *part)) % 3 == 0

    left = shrink(calls, fails)
    assert fails(left)
    assert is_within(left, calls)
    assert not any(fails(left[:at] + left[at + 1 :]) for at in range(len(left)))
    assert shrink(calls, fails) == left


@given(st.integers(min_value=0, max_value=30))
def test_after_so_many_tries_it_is_the_least_that_was_seen(most: int) -> None:
    calls, fails = list(range(64)), Fails(frozenset((3, 40, 63)))
    left = shrink(calls, fails, most_tries=most)
    assert len(fails.asked) <= most
    assert {3, 40, 63} <= set(left)
    assert is_within(left, calls)
    seen = [len(one) for one in fails.asked if {3, 40, 63} <= set(one)]
    assert len(left) == min(seen, default=64)


def test_what_fails_of_itself_needs_nothing() -> None:
    assert shrink([1, 2, 3], Fails(frozenset())) == []
    assert shrink([1], Fails(frozenset())) == []


def test_one_of_a_thousand_takes_few_tries() -> None:
    fails = Fails(frozenset((700,)))
    assert shrink(range(1000), fails) == [700]
    assert len(fails.asked) < 40


def test_progress_tells_how_much_is_left() -> None:
    progress: list[tuple[int, int]] = []
    fails = Fails(frozenset((0, 7)))
    shrink(range(8), fails, lambda left, tries: progress.append((left, tries)))
    lengths = [left for left, _ in progress]
    assert lengths == sorted(lengths, reverse=True)
    assert progress[-1][0] == 2
    assert progress[-1][1] <= len(fails.asked)


@pytest.mark.parametrize("twice", [[5, 5], [5, 1, 5]])
def test_equal_actions_are_told_apart_by_their_places(twice: list[int]) -> None:
    assert shrink(twice, lambda part: part.count(5) == 2) == [5, 5]
