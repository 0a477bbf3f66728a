"""All sources as one: what they tell, in the order in which it happened."""

from __future__ import annotations

import heapq
import itertools
import select
from collections.abc import Iterator, Sequence

from vfiotool.events.entry import EventSource, TimelineEntry, now

_HOLD = 0.25
"""Seconds by which an entry may come later than another that happened after it."""
_TICK = 0.1


class Timeline:
    """Merges sources, which are the caller's to close. One thread uses it."""

    def __init__(self, sources: Sequence[EventSource]) -> None:
        self._sources = sources
        self._held: list[tuple[float, int, TimelineEntry]] = []
        self._order = itertools.count()

    def entries(self, until: float | None = None) -> Iterator[TimelineEntry]:
        """Yield entries by their time, until CLOCK_MONOTONIC is ``until`` seconds, or for ever.

        Each comes a quarter of a second after it happened, for the sources are not equally fast.
        """
        while until is None or now() < until:
            self._wait(until)
            begun = now()  # what happens while sources are read one after the other is for the next time
            self._gather()
            yield from self._before(begun - _HOLD)
        self._gather()
        yield from self.rest()

    def rest(self) -> Iterator[TimelineEntry]:
        """Yield what is still held back: for when ``entries`` was left."""
        return self._before(None)

    def _wait(self, until: float | None) -> None:
        poller = select.poll()
        for source in self._sources:
            fd = source.fileno()
            if fd is not None:
                poller.register(fd, select.POLLIN)
        seconds = _TICK if until is None else min(_TICK, max(0.0, until - now()))
        poller.poll(seconds * 1000)

    def _gather(self) -> None:
        for source in self._sources:
            for entry in source.read():
                heapq.heappush(self._held, (entry.time, next(self._order), entry))

    def _before(self, end: float | None) -> Iterator[TimelineEntry]:
        while self._held and (end is None or self._held[0][0] <= end):
            yield heapq.heappop(self._held)[2]
