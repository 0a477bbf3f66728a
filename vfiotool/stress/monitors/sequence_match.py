"""Matches two growing sequences that should be equal: the expected items and the received items.

A difference can have several explanations: for ``add remove add remove``, the sequence ``add add remove``
lacks the first ``remove`` or has a surplus second ``add``. The matcher follows every explanation with about
as few faults as the best; later items show which explanation is right.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from vfiotool.stress.monitors.samples import Samples

_WORSE = 4
"""The most faults by which a followed explanation may exceed the best."""
_LONGEST = 10_000
"""The most items that may wait for the other side. Further items are faults."""


class Item(Protocol):
    """An item to compare. Only ``action`` is compared."""

    @property
    def action(self) -> str:
        """The action."""


E = TypeVar("E", bound=Item)
C = TypeVar("C", bound=Item)


@dataclass(slots=True)
class Lane(Generic[E, C]):
    """One explanation of the differences between the sequences.

    ``expected`` and ``came`` are the numbers of explained waiting items. ``disordered`` holds the items that
    came too early.
    """

    expected: int
    came: int
    missing: Samples[E]
    surplus: Samples[C]
    disordered: Samples[C]

    @property
    def faults(self) -> int:
        """The number of faults of the explanation."""
        return self.missing.count + self.surplus.count + self.disordered.count

    def on(self, expected: int, came: int) -> Lane[E, C]:
        """Return a continuation of this explanation."""
        return Lane(
            self.expected + expected,
            self.came + came,
            self.missing.copy(),
            self.surplus.copy(),
            self.disordered.copy(),
        )


class SequenceMatcher(Generic[E, C]):
    """Matches one pair of sequences. Calls ``matched`` with each pair that is certain."""

    def __init__(self, matched: Callable[[E, C], None]) -> None:
        self._matched = matched
        self._expected = deque[E]()
        self._came = deque[C]()
        self._lanes = [Lane[E, C](0, 0, Samples(), Samples(), Samples())]

    def expect(self, item: E) -> None:
        """Add an expected item."""
        self._expected.append(item)
        self._advance()

    def see(self, item: C) -> None:
        """Add a received item."""
        self._came.append(item)
        self._advance()

    @property
    def best(self) -> Lane[E, C]:
        """The explanation with the fewest faults so far."""
        return min(self._lanes, key=self._rank)

    @property
    def is_settled(self) -> bool:
        """Return True if each expected item has been received, or is certainly missing."""
        if not self._expected:
            return True
        best = self._rank(self.best)
        return all(lane.expected == len(self._expected) for lane in self._lanes if self._rank(lane) == best)

    def finish(self) -> None:
        """End the matching: all waiting items are faults."""
        self._lanes = [self._explain(self._lanes, is_all=True)[0]]
        self._trim()

    def _rank(self, lane: Lane[E, C]) -> int:
        """Return the number of faults if no items follow."""
        return lane.faults + len(self._expected) - lane.expected + len(self._came) - lane.came

    def _advance(self) -> None:
        if len(self._lanes) == 1:
            self._match_heads()
        if self._expected and self._came:
            self._lanes = self._explain(self._lanes, is_all=False)
            self._trim()
        if max(len(self._expected), len(self._came)) > _LONGEST:
            self._drop_oldest()

    def _match_heads(self) -> None:
        """There is no doubt: what was expected first came first."""
        while self._expected and self._came and self._expected[0].action == self._came[0].action:
            self._matched(self._expected.popleft(), self._came.popleft())

    def _explain(self, lanes: list[Lane[E, C]], *, is_all: bool) -> list[Lane[E, C]]:
        """Follow explanations to where one side has no more, those with the fewest faults first."""
        order = itertools.count()
        waiting = [(lane.faults, next(order), lane) for lane in lanes]
        heapq.heapify(waiting)
        been, ended = set[tuple[int, int]](), list[Lane[E, C]]()
        while waiting:
            faults, _, lane = heapq.heappop(waiting)
            if ended and (is_all or faults > ended[0].faults + _WORSE):
                break
            self._match(lane)
            if (lane.expected, lane.came) in been:
                continue
            been.add((lane.expected, lane.came))
            if self._is_at_end(lane, is_all=is_all):
                ended.append(lane)
                continue
            for branch in self._branches(lane):
                heapq.heappush(waiting, (branch.faults, next(order), branch))
        return ended

    def _match(self, lane: Lane[E, C]) -> None:
        while (
            lane.expected < len(self._expected)
            and lane.came < len(self._came)
            and self._expected[lane.expected].action == self._came[lane.came].action
        ):
            lane.expected += 1
            lane.came += 1

    def _is_at_end(self, lane: Lane[E, C], *, is_all: bool) -> bool:
        """Return True if more items are needed: two items per side show whether items are swapped."""
        expected, came = len(self._expected) - lane.expected, len(self._came) - lane.came
        if is_all:
            return not expected and not came
        return expected < 2 or came < 2

    def _branches(self, lane: Lane[E, C]) -> Iterator[Lane[E, C]]:
        """Yield the explanations of a difference: swapped, missing, surplus."""
        expected = list(itertools.islice(self._expected, lane.expected, lane.expected + 2))
        came = list(itertools.islice(self._came, lane.came, lane.came + 2))
        if [item.action for item in expected] == [item.action for item in reversed(came)] and len(came) == 2:
            swapped = lane.on(2, 2)
            swapped.disordered.add(came[0])
            yield swapped
        if expected:
            missing = lane.on(1, 0)
            missing.missing.add(expected[0])
            yield missing
        if came:
            surplus = lane.on(0, 1)
            surplus.surplus.add(came[0])
            yield surplus

    def _trim(self) -> None:
        """Drop the items that all explanations have explained."""
        expected = min(lane.expected for lane in self._lanes)
        came = min(lane.came for lane in self._lanes)
        for _ in range(expected):
            self._expected.popleft()
        for _ in range(came):
            self._came.popleft()
        for lane in self._lanes:
            lane.expected -= expected
            lane.came -= came

    def _drop_oldest(self) -> None:
        """Count the oldest item as a fault: the other side has been silent for too long."""
        lane = self.best
        self._lanes = [lane]
        self._trim()
        if len(self._expected) > len(self._came):
            lane.missing.add(self._expected.popleft())
        else:
            lane.surplus.add(self._came.popleft())
