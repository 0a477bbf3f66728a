"""Two implementations of an operation, timed in turns, and the ratio of their times."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Result:
    """``ours`` and ``theirs`` are nanoseconds per operation, ``ratio`` is ours to theirs.

    All three are medians, the ratio over the rounds: a machine becomes slow for seconds at a time, and
    both halves of a round are equally slow. ``goal`` is the intended ratio.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    goal: str
    met: bool


def compare(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    count: int,
    *,
    at_most: float | None = None,
    rounds: int = ROUNDS,
) -> Result:
    """Run both in turns, after an unmeasured round; each returns nanoseconds for ``count`` operations."""
    ours(), theirs()
    mine, others = [], []
    for number in range(rounds):
        # The order alternates, so that caches and other load favour neither.
        if number % 2:
            mine.append(ours())
        others.append(theirs())
        if number % 2 == 0:
            mine.append(ours())
    ratio = statistics.median(one / other for one, other in zip(mine, others, strict=True))
    each = statistics.median(mine) / count, statistics.median(others) / count
    goal = "" if at_most is None else f"at most {at_most:g}"
    return Result(name, *each, ratio, goal, at_most is None or ratio <= at_most)
