"""Replay the calls of a trace, or find the fewest calls that still show a finding."""

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
    """The findings of monitors, as sentences, and the first line of the kernel's log with a defect."""

    found: tuple[str, ...] = ()
    logged: str = ""


_NOTHING_SEEN = MonitorFindings()


class ReplayObserver(Protocol):
    """Monitors a replay, for defects that no outcome shows."""

    def begin(self) -> None:
        """Start with empty monitors."""

    def announce(self, expected: Expectation) -> None:
        """Announce the next call, by its expectation."""

    def end(self, records: Sequence[Record]) -> MonitorFindings:
        """Return the findings after these records."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect, and the calls that show the defect on a group at rest.

    ``records`` are the records of a replay of ``calls``; they include the calls that unblocked a blocked
    call, and the calls that returned the group to rest. ``seen`` are the findings of monitors, if any.
    """

    calls: tuple[Call, ...]
    records: tuple[Record, ...]
    seen: MonitorFindings = _NOTHING_SEEN

    @property
    def record(self) -> Record | None:
        """The record with the unexpected outcome, or None."""
        return next((record for record in self.records if record.is_unexpected), None)

    def is_like(self, other: Finding) -> bool:
        """Return True if both findings show the same defect. Numbers in texts are ignored."""
        if self.record is None or other.record is None:
            return self.record is other.record and bool(_kinds(self.seen) & _kinds(other.seen))
        return _signature(self.record) == _signature(other.record)


def calls_of(trace: Trace) -> dict[int, list[Call]]:
    """Return the chosen calls of each group, in order, without the calls that unblocked another call."""
    chosen: dict[int, list[Call]] = {}
    for line in trace.lines:
        if not line.released:
            chosen.setdefault(line.unit, []).append(line.call)
    return chosen


def cycles_of(trace: Trace) -> dict[int, list[list[Call]]]:
    """Return the chosen calls of each group, by cycle. Each cycle begins and ends at rest."""
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
    """Return the calls of the cycle with the first unexpected outcome, up to that call; empty if none.

    A cycle begins at rest. A trace holds the calls that unblock a blocked call before the blocked call; these
    calls are left out.
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
    """Execute calls on a group at rest, return the group to rest, and yield the records.

    Calls that are impossible in the present state are left out. Calls that would end the machine are left out
    unless ``allow_crash`` is set. After an unexpected outcome no further call is executed: all fds are closed
    and the group returns to rest, without records. ``announce`` is called before each call with its
    expectation.

    Raises:
        VfioToolError: a call is invalid, or the group does not return to rest.
    """
    template, went_as_expected = _REPLAYED._replace(unit=unit), False
    try:
        for call in chain(_possible(harness, calls, allow_crash), harness.wind_down()):
            if announce is not None and (expected := harness.expect(call)) is not None:
                announce(expected)
            records = list(harness.perform(call, template))  # a blocked call ends before its records are read
            yield from records
            if not records or any(record.is_unexpected for record in records):
                return
        went_as_expected = True
    finally:
        if not went_as_expected:
            bring_to_rest(harness)


def bring_to_rest(harness: GroupHarness) -> None:
    """Close all fds, read the kernel's state, and bind every member to vfio-pci; outcomes do not matter.

    Raises:
        VfioToolError: the group does not return to rest.
    """
    for _ in range(_MOST_TURNS):
        harness.abandon()
        for call in harness.wind_down():
            records = list(harness.perform(call, _REPLAYED))
            if not records or any(record.is_unexpected for record in records):
                break
        else:
            if harness.is_at_rest:
                return
    raise VfioToolError(
        f"group {harness.number} does not return to rest: not all of {', '.join(harness.spec.members)} "
        "can be bound to vfio-pci again",
        hint="see the kernel's log, and 'vfiotool list' for the drivers; 'vfiotool recover' restores devices",
    )


def find(
    harness: GroupHarness, calls: Sequence[Call], *, unit: int = 0, watch: ReplayObserver | None = None
) -> Finding | None:
    """Replay calls and return the finding; None if every outcome is as expected, or no call was possible."""
    if watch is None:
        finding = Finding(tuple(calls), tuple(replay(harness, calls, unit=unit)))
    else:
        watch.begin()
        records = tuple(replay(harness, calls, unit=unit, announce=watch.announce))
        finding = Finding(tuple(calls), records, watch.end(records))
    is_defect = finding.record is not None or bool(finding.seen.found)
    return finding if finding.records and is_defect else None


def shrunk(
    harness: GroupHarness,
    calls: Sequence[Call],
    tries: int = MOST_TRIES,
    progress: Progress | None = None,
    *,
    unit: int = 0,
    watch: ReplayObserver | None = None,
) -> Finding | None:
    """Return the fewest calls that show the same defect; None if every outcome is as expected now.

    Each try is a replay, monitored by ``watch``. Calls that would end the machine are left out.
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
                f"the call '{call}' is invalid: {error}", hint="correct or remove this line of the trace"
            ) from error
        if expected is not None and (allow_crash or not expected.crash):
            yield call


def _signature(record: Record) -> tuple[str, int, int, str]:
    outcome = record.outcome
    return record.call.name, outcome.errno, outcome.value, _NUMBER.sub("", outcome.note)


def _kinds(seen: MonitorFindings) -> set[str]:
    """Return the findings without counts and numbers, which differ from try to try."""
    return {_NUMBER.sub("", _TIMES.sub("", finding)) for finding in seen.found}
