"""Delta debugging: find the smallest part of a failing sequence that still fails.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002 (ddmin).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

T = TypeVar("T")
Kept = tuple[int, ...]
"""The indices of the kept items, ascending."""

Progress = Callable[[int, int], None]
"""Called with the number of kept items, and the number of tries so far."""

MOST_TRIES = 1000


def shrink(
    items: Sequence[T],
    fails: Callable[[Sequence[T]], bool],
    progress: Progress | None = None,
    *,
    most_tries: int = MOST_TRIES,
) -> list[T]:
    """Return a failing part of a sequence, in order, from which no item can be left out.

    The whole sequence must fail; it is not tried. After ``most_tries`` calls of ``fails``, the result is the
    smallest part that failed so far. The result is deterministic; ``fails`` is called once for each part.
    """
    search = _Search(items, fails, most_tries)
    kept = tuple(range(len(items)))
    for smaller in search.run(kept):
        kept = smaller
        if progress is not None:
            progress(len(kept), search.tries)
    return search.part(kept)


class _Search(Generic[T]):
    def __init__(self, items: Sequence[T], fails: Callable[[Sequence[T]], bool], most_tries: int) -> None:
        self.tries = 0
        self._items = items
        self._fails = fails
        self._most_tries = most_tries
        self._seen: dict[Kept, bool] = {}

    def run(self, kept: Kept) -> Iterator[Kept]:
        """Yield ever smaller failing parts: leave out whole sections first, then single items."""
        least = kept
        for least in self._by_parts(kept):
            yield least
        while (smaller := self._first_failing(_without_one(least))) is not None:
            least = smaller
            yield least

    def part(self, kept: Kept) -> list[T]:
        return [self._items[at] for at in kept]

    def _by_parts(self, kept: Kept) -> Iterator[Kept]:
        count = 2
        while len(kept) > 1 and self.tries < self._most_tries:
            parts = _split(kept, count)
            if (one := self._first_failing(iter(parts))) is not None:
                kept, count = one, 2
                yield kept
            elif (rest := self._first_failing(_without_part(parts))) is not None:
                kept, count = rest, max(count - 1, 2)
                yield kept
            elif count == len(kept):
                return
            else:
                count = min(count * 2, len(kept))

    def _first_failing(self, candidates: Iterator[Kept]) -> Kept | None:
        return next((one for one in candidates if self._is_failing(one)), None)

    def _is_failing(self, kept: Kept) -> bool:
        known = self._seen.get(kept)
        if known is None and self.tries < self._most_tries:
            self.tries += 1
            known = self._seen[kept] = self._fails(self.part(kept))
        return bool(known)


def _split(kept: Kept, count: int) -> list[Kept]:
    """Return ``count`` sections of about the same length."""
    bounds = [len(kept) * at // count for at in range(count + 1)]
    return [kept[begin:end] for begin, end in pairwise(bounds)]


def _without_part(parts: list[Kept]) -> Iterator[Kept]:
    for left_out in range(len(parts)):
        yield tuple(at for index, part in enumerate(parts) if index != left_out for at in part)


def _without_one(kept: Kept) -> Iterator[Kept]:
    for left_out in range(len(kept)):
        yield kept[:left_out] + kept[left_out + 1 :]
