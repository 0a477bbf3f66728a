"""Two ways to do the same, timed in turns, and the ratio of their times."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Result:
    """``ours`` and ``theirs`` are the medians of the rounds, in nanoseconds for one operation.

    ``ratio`` is the median of each round's own ratio, so that what slows the machine for a while slows
    both. ``goal`` says what the ratio should be.
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
    """Run both in turns, first once unmeasured; each returns nanoseconds for ``count`` operations."""
    ours(), theirs()
    pairs = []
    for number in range(rounds):
        # Who comes first changes: caches, and what else the machine does, favour neither.
        first = ours() if number % 2 else None
        other = theirs()
        pairs.append((first if first is not None else ours(), other))
    ratio = statistics.median(mine / other for mine, other in pairs)
    goal = "" if at_most is None else f"at most {at_most:g}"
    return Result(
        name,
        statistics.median(mine for mine, _ in pairs) / count,
        statistics.median(other for _, other in pairs) / count,
        ratio,
        goal,
        at_most is None or ratio <= at_most,
    )
