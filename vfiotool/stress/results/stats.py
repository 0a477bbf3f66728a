"""The statistics of a run so far: operations, cycles, latencies, unexpected outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

from vfiotool.stress.monitors.samples import Samples
from vfiotool.stress.record import Record, errno_name
from vfiotool.stress.results.report import MOST_UNEXPECTED, Unexpected
from vfiotool.stress.results.trace import TraceWriter

MOST_NAMES = 200
OTHERS = "(others)"
_HOUR_US = 3_600_000_000
_DIGITS = 3
_PERCENTILES = (50, 90, 99)


def _new_histogram() -> HdrHistogram:
    return HdrHistogram(1, _HOUR_US, _DIGITS)


@dataclass(slots=True)
class _Operation:
    """The histogram holds three digits only, so ``max_us`` is kept beside the histogram."""

    errors: Counter[str] = field(default_factory=Counter)
    histogram: HdrHistogram = field(default_factory=_new_histogram)
    max_us: float = 0.0

    @property
    def count(self) -> int:
        return int(self.histogram.get_total_count())

    def document(self) -> dict[str, Any]:
        found = self.histogram.get_percentile_to_value_dict(_PERCENTILES)
        most = round(self.max_us, 1)
        shown = {f"p{percent}_us": min(found[percent], most) for percent in _PERCENTILES}
        return {"count": self.count, "errors": dict(sorted(self.errors.items())), **shown, "max_us": most}


class Latencies:
    """A histogram per operation: 1 us to one hour, three digits. Only one thread may use the histograms.

    A histogram takes 190 kB, so operations after the first ``MOST_NAMES`` - 1 names count as ``OTHERS``.
    """

    def __init__(self) -> None:
        self._operations: dict[str, _Operation] = {}

    def record(self, name: str, took_us: float, errno_name: str) -> None:
        """Count an operation. ``took_us`` is in microseconds; ``errno_name`` is ``0`` for success."""
        operation = self._operations.get(name) or self._begin(name)
        operation.histogram.record_value(min(max(round(took_us), 1), _HOUR_US))
        operation.max_us = max(operation.max_us, took_us)
        if errno_name != "0":
            known = errno_name in operation.errors or len(operation.errors) < MOST_NAMES - 1
            operation.errors[errno_name if known else OTHERS] += 1

    @property
    def count(self) -> int:
        """The number of operations."""
        return sum(operation.count for operation in self._operations.values())

    def document(self) -> dict[str, dict[str, Any]]:
        """Return count, errors, percentiles and maximum by operation; times are in microseconds."""
        return {name: self._operations[name].document() for name in sorted(self._operations)}

    def most_frequent(self, most: int) -> dict[str, dict[str, Any]]:
        """Return the part of ``document`` for the ``most`` most frequent operations."""
        names = sorted(self._operations, key=lambda name: (-self._operations[name].count, name))
        return {name: self._operations[name].document() for name in names[:most]}

    def _begin(self, name: str) -> _Operation:
        name = name if len(self._operations) < MOST_NAMES - 1 else OTHERS
        return self._operations.setdefault(name, _Operation())


_WAITED = " (waited)"


class RunStats:
    """The statistics of a run. Only one thread may use them. Memory does not grow with the run."""

    def __init__(self, trace: TraceWriter) -> None:
        self.trace = trace
        self.latencies = Latencies()
        self.cycles = 0
        self.operations = 0
        self.unexpected: list[Unexpected] = []
        self.unexpected_count = 0
        self._leaked = Samples[str]()

    def add(self, record: Record) -> None:
        """Count a record, and write the record to the trace."""
        self.operations += 1
        name = record.call.name + (_WAITED if record.expected.waits_for else "")
        self.latencies.record(name, record.took_us, errno_name(record.outcome.errno))
        if record.is_unexpected:
            self.unexpected_count += 1
            if len(self.unexpected) < MOST_UNEXPECTED:
                texts = (str(record.call), str(record.expected), str(record.outcome))
                self.unexpected.append(Unexpected(*texts, record.at))
        self.trace.write(record.line().document())

    def add_leaks(self, found: Iterable[str]) -> None:
        """Add the leaks that a worker found after a cycle."""
        for leak in found:
            self._leaked.add(leak)

    @property
    def leaked(self) -> list[str]:
        """The leaks that workers found, at most a hundred."""
        return self._leaked.first

    def most_frequent(self, most: int) -> Mapping[str, Mapping[str, Any]]:
        """Return the latencies of the most frequent operations."""
        return self.latencies.most_frequent(most)
