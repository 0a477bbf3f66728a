"""The timeline: the entries of all sources, ordered by time."""

from __future__ import annotations

import heapq
import itertools
import select
from collections.abc import Iterator, Sequence

from vfiotool.events.entry import EventSource, TimelineEntry, now

_HOLD = 0.25
"""Seconds to hold an entry, in case another source delivers an earlier entry later."""
_TICK = 0.1


class Timeline:
    """Merges sources, which the caller closes. For use by a single thread."""

    def __init__(self, sources: Sequence[EventSource]) -> None:
        self._sources = sources
        self._held: list[tuple[float, int, TimelineEntry]] = []
        self._order = itertools.count()

    def entries(self, until: float | None = None) -> Iterator[TimelineEntry]:
        """Yield entries ordered by time, until CLOCK_MONOTONIC is ``until`` seconds, or without end.

        Each entry comes a quarter of a second after its time, because some sources are slower than others.
        """
        while until is None or now() < until:
            self._wait(until)
            begun = now()  # later entries wait for the next round: sources are read one by one
            self._gather()
            yield from self._before(begun - _HOLD)
        self._gather()
        yield from self.rest()

    def rest(self) -> Iterator[TimelineEntry]:
        """Yield the entries that are still held, after ``entries`` was abandoned."""
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
