"""The same operations again: of a trace, or the fewest of them that still show what went otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from vfiotool.errors import VfioToolError
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.record import NOTHING, Call, Expectation, Record
from vfiotool.stress.reproduce.ddmin import MOST_TRIES, Progress, shrink
from vfiotool.stress.results.trace import Trace

_MOST_TURNS = 8
_REPLAYED = NOTHING._replace(workload="replay")
_NUMBER = re.compile(r"\d+")
_TIMES = re.compile(r", (?:once|\d+ times): .*|\b(?:once|\d+ times)\b", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MonitorFindings:
    """What monitors found, a sentence each, and the first line of the kernel's log that tells of a defect."""

    found: tuple[str, ...] = ()
    logged: str = ""


_NOTHING_SEEN = MonitorFindings()


class ReplayObserver(Protocol):
    """Who watches a replay for what no result tells."""

    def begin(self) -> None:
        """Take it that nothing was done yet."""

    def announce(self, expected: Expectation) -> None:
        """Take what is done next."""

    def end(self, records: Sequence[Record]) -> MonitorFindings:
        """Say what was found, now that these were done."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What went otherwise than it had to, and the operations that show it, on a group at rest.

    ``records`` are those of a replay of ``actions``: with what released a waiting one, and what wound down.
    ``seen`` is what monitors found, where they watched it.
    """

    calls: tuple[Call, ...]
    records: tuple[Record, ...]
    seen: MonitorFindings = _NOTHING_SEEN

    @property
    def record(self) -> Record | None:
        """The operation that went otherwise, if one did."""
        return next((one for one in self.records if one.is_unexpected), None)

    def is_like(self, other: Finding) -> bool:
        """Say whether the same went otherwise in the same way; numbers in its text do not count."""
        if self.record is None or other.record is None:
            return self.record is other.record and bool(_kinds(self.seen) & _kinds(other.seen))
        return _signature(self.record) == _signature(other.record)


def calls_of(trace: Trace) -> dict[int, list[Call]]:
    """Return what was chosen for each unit, in order: what released a waiting one comes of itself."""
    chosen: dict[int, list[Call]] = {}
    for line in trace.lines:
        if not line.released:
            chosen.setdefault(line.unit, []).append(line.call)
    return chosen


def cycles_of(trace: Trace) -> dict[int, list[list[Call]]]:
    """Return what was chosen for each unit, cycle by cycle: each begins and ends at rest."""
    cycles: dict[int, list[list[Call]]] = {}
    current: dict[int, tuple[str, int]] = {}
    for line in trace.lines:
        key = (line.workload, line.cycle)
        if current.get(line.unit) != key:
            current[line.unit] = key
            cycles.setdefault(line.unit, []).append([])
        if not line.released:
            cycles[line.unit][-1].append(line.call)
    return cycles


def failing_prefix(trace: Trace, unit: int) -> list[Call]:
    """Return the cycle in which something first went otherwise, up to that; empty where nothing did.

    A cycle begins at rest. What kept a waiting operation comes before that in a trace, and is left out.
    """
    lines = [line for line in trace.lines if line.unit == unit]
    at = next((at for at, line in enumerate(lines) if line.unexpected), len(lines))
    while at < len(lines) and lines[at].released:
        at += 1
    first = next((line for line in lines if line.unexpected), None)
    return [
        line.call
        for line in lines[: at + 1]
        if first and not line.released and (line.workload, line.cycle) == (first.workload, first.cycle)
    ]


def replay(
    harness: GroupHarness,
    calls: Iterable[Call],
    *,
    unit: int = 0,
    allow_crash: bool = False,
    announce: Callable[[Expectation], None] | None = None,
) -> Iterator[Record]:
    """Do actions on a group that is at rest, and bring it back there; yield what came of each.

    What cannot be done in the state that the group is in is left out, and, unless ``allow_crash``, what
    would end the machine. After something went otherwise it does no more, closes all and brings the group
    to rest, of which nothing is yielded. ``announce`` is called before each with what must come of it.

    Raises:
        VfioToolError: an action cannot be understood, or the group does not come to rest.
    """
    template, went_as_expected = _REPLAYED._replace(unit=unit), False
    try:
        for call in chain(_possible(harness, calls, allow_crash), harness.wind_down()):
            if announce is not None and (expected := harness.expect(call)) is not None:
                announce(expected)
            records = list(harness.perform(call, template))  # what was begun ends before anyone looks at it
            yield from records
            if not records or any(one.is_unexpected for one in records):
                return
        went_as_expected = True
    finally:
        if not went_as_expected:
            bring_to_rest(harness)


def bring_to_rest(harness: GroupHarness) -> None:
    """Close all, look at the kernel, and have every member on vfio-pci, whatever is expected of that.

    Raises:
        VfioToolError: the group does not come to rest.
    """
    for _ in range(_MOST_TURNS):
        harness.abandon()
        for call in harness.wind_down():
            records = list(harness.perform(call, _REPLAYED))
            if not records or any(one.is_unexpected for one in records):
                break
        else:
            if harness.is_at_rest:
                return
    raise VfioToolError(
        f"group {harness.number} does not come to rest: not all of {', '.join(harness.spec.members)} "
        "can be brought back to vfio-pci",
        hint="see the kernel's log, and 'vfiotool list' for the drivers; 'vfiotool recover' restores them",
    )


def find(
    harness: GroupHarness, calls: Sequence[Call], *, unit: int = 0, watch: ReplayObserver | None = None
) -> Finding | None:
    """Replay actions, and return what went otherwise; ``None`` if all went as told, or nothing was done."""
    if watch is None:
        finding = Finding(tuple(calls), tuple(replay(harness, calls, unit=unit)))
    else:
        watch.begin()
        records = tuple(replay(harness, calls, unit=unit, announce=watch.announce))
        finding = Finding(tuple(calls), records, watch.end(records))
    went_otherwise = finding.record is not None or bool(finding.seen.found)
    return finding if finding.records and went_otherwise else None


def shrunk(
    harness: GroupHarness,
    calls: Sequence[Call],
    tries: int = MOST_TRIES,
    progress: Progress | None = None,
    *,
    unit: int = 0,
    watch: ReplayObserver | None = None,
) -> Finding | None:
    """Return the fewest of the actions of which the same comes; ``None`` if all go as told now.

    Each try is a replay, which ``watch`` watches. What would end the machine is left out.
    """
    whole = find(harness, calls, unit=unit, watch=watch)
    if whole is None:
        return None
    least = whole

    def fails(part: Sequence[Call]) -> bool:
        nonlocal least
        found = find(harness, part, unit=unit, watch=watch)
        if found is None or not found.is_like(whole):
            return False
        least = found
        return True

    shrink(calls, fails, progress, most_tries=tries)
    return least


def _possible(harness: GroupHarness, calls: Iterable[Call], allow_crash: bool) -> Iterator[Call]:
    for call in calls:
        try:
            expected = harness.expect(call)
        except (LookupError, ValueError) as error:
            raise VfioToolError(
                f"'{call}' cannot be understood: {error}", hint="correct or remove this line of the trace"
            ) from error
        if expected is not None and (allow_crash or not expected.crash):
            yield call


def _signature(record: Record) -> tuple[str, int, int, str]:
    outcome = record.outcome
    return record.call.name, outcome.errno, outcome.value, _NUMBER.sub("", outcome.note)


def _kinds(seen: MonitorFindings) -> set[str]:
    """Return what was found without how often, and without numbers, which are others each time."""
    return {_NUMBER.sub("", _TIMES.sub("", one)) for one in seen.found}
