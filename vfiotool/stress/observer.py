"""Monitors on replays, one after another: for what no operation's result tells."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from vfiotool.events.entry import now
from vfiotool.stress.action import Expectation, Record
from vfiotool.stress.holdings import Holdings, read_holdings
from vfiotool.stress.replay import Seen
from vfiotool.stress.stage import Stage
from vfiotool.stress.watchers import Watchers

_SETTLE_SECONDS = 2.0
_POLL_SECONDS = 0.01


class Observer:
    """Watches what is done on a stage. A handle of one thread: close it.

    What others do to VFIO meanwhile counts, too: functions that name no device are everybody's.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._watchers = Watchers(stage.tree, stage.model.era, stage.unit.members)
        self._before = self._holdings()

    def begin(self) -> None:
        """Take it that nothing was done yet: the stage is at rest."""
        self._watchers.renew()
        self._before = self._holdings()

    def announce(self, expected: Expectation) -> None:
        """Watch what an operation is about, before it is done."""
        for group, addresses in self._stage.about(expected):
            self._watchers.watch(group, addresses)

    def end(self, records: Sequence[Record]) -> Seen:
        """Give what was sent the time to come, and say what was found."""
        for record in records:
            self._watchers.note(record)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not self._is_settled() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._watchers.finish()
        leaked = self._holdings().more_than(self._before)
        logged = next((line["text"] for line in self._watchers.kernel_log.document()), "")
        return Seen((*self._watchers.found(), *leaked), logged)

    def close(self) -> None:
        """Stop watching. Any number of times."""
        self._watchers.close()

    def _is_settled(self) -> bool:
        self._watchers.read()
        self._watchers.feed(now())
        return self._watchers.is_settled()

    def _holdings(self) -> Holdings:
        """Return what is held at rest: all is closed that the model has, and this is what it has not."""
        self._stage.troupe.close()
        return read_holdings((os.getpid(),), self._stage.tree)
