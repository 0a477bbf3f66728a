"""What a run has done so far: operations, cycles, latencies, and what came out otherwise than it had to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vfiotool.stress.action import Record, errno_name
from vfiotool.stress.latencies import Latencies
from vfiotool.stress.monitors.examples import Examples
from vfiotool.stress.report import MOST_UNEXPECTED, Unexpected
from vfiotool.stress.trace import TraceWriter

_WAITED = " (waited)"


class Tally:
    """One thread uses it. Its memory does not grow with the run."""

    def __init__(self, trace: TraceWriter) -> None:
        self.trace = trace
        self.latencies = Latencies()
        self.cycles = 0
        self.operations = 0
        self.unexpected: list[Unexpected] = []
        self.unexpected_count = 0
        self._leaked = Examples[str]()

    def add(self, record: Record) -> None:
        """Count an operation, and write it to the trace."""
        self.operations += 1
        name = record.action.name + (_WAITED if record.expected.waits_for else "")
        self.latencies.record(name, record.took_us, errno_name(record.outcome.errno))
        if record.is_unexpected:
            self.unexpected_count += 1
            if len(self.unexpected) < MOST_UNEXPECTED:
                texts = (str(record.action), str(record.expected), str(record.outcome))
                self.unexpected.append(Unexpected(*texts, record.at))
        self.trace.write(record.document())

    def add_leaks(self, found: Iterable[str]) -> None:
        """Take what a performer holds more of after a cycle."""
        for one in found:
            self._leaked.add(one)

    @property
    def leaked(self) -> list[str]:
        """What performers had more of after a cycle than before it."""
        return self._leaked.first

    def most_frequent(self, most: int) -> Mapping[str, Mapping[str, Any]]:
        """Return the latencies of the operations that were done most often."""
        return self.latencies.most_frequent(most)
