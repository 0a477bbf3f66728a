"""Reduce a finding to the fewest operations that still show the finding, on the devices themselves."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Sequence

from vfiotool.errors import VfioToolError
from vfiotool.events.entry import now
from vfiotool.host.tree import Tree
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.groups import GroupSpec, kernel_model
from vfiotool.stress.lease import GIVE_BACK_SECONDS, DeviceLease
from vfiotool.stress.monitors.monitor_set import MonitorSet
from vfiotool.stress.monitors.resources import Holdings, read_holdings
from vfiotool.stress.operations.registry import GroupOperations
from vfiotool.stress.record import Expectation, Record
from vfiotool.stress.reproduce.replay import Finding, MonitorFindings, calls_of, failing_prefix, shrunk
from vfiotool.stress.results.trace import Trace

_SETTLE_SECONDS = 2.0
_POLL_SECONDS = 0.01


class ReplayMonitors:
    """Watches what is done on a group. A handle of one thread: close it.

    What others do to VFIO meanwhile counts, too: functions that name no device are everybody's.
    """

    def __init__(self, harness: GroupHarness) -> None:
        self._harness = harness
        self._monitors = MonitorSet(harness.tree, harness.model.era, harness.spec.members)
        self._before = self._holdings()

    def begin(self) -> None:
        """Take it that nothing was done yet: the group is at rest."""
        self._monitors.renew()
        self._before = self._holdings()

    def announce(self, expected: Expectation) -> None:
        """Watch what an operation is about, before it is done."""
        for group, addresses in self._harness.about(expected):
            self._monitors.watch(group, addresses)

    def end(self, records: Sequence[Record]) -> MonitorFindings:
        """Give what was sent the time to come, and say what was found."""
        for record in records:
            self._monitors.note(record)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not self._is_settled() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._monitors.finish()
        leaked = self._holdings().more_than(self._before)
        logged = next((line["text"] for line in self._monitors.kernel_log.document()), "")
        return MonitorFindings((*self._monitors.found(), *leaked), logged)

    def close(self) -> None:
        """Stop watching. Any number of times."""
        self._monitors.close()

    def _is_settled(self) -> bool:
        self._monitors.read()
        self._monitors.feed(now())
        return self._monitors.is_settled()

    def _holdings(self) -> Holdings:
        """Return what is held at rest: all is closed that the model has, and this is what it has not."""
        self._harness.clients.close()
        return read_holdings((os.getpid(),), self._harness.tree)


def reduce(trace: Trace, groups: Sequence[GroupSpec], state_dir: str, allowed: Collection[str]) -> Finding:
    """Take the devices of the first unit in which an operation went otherwise, and find what shows it.

    Its cycle alone is tried first, then all that was done in the unit. Where each operation gave what it had
    to, monitors watch what is done in one unit after the other. Devices are given back.

    Raises:
        VfioToolError: all goes as expected now, or the devices could not be given back.
        Others as ``DeviceLease`` does.
    """
    model = kernel_model(Tree(), state_dir)
    failed = next((line.unit for line in trace.lines if line.unexpected), None)
    for number in calls_of(trace) if failed is None else [failed]:
        with _taken(groups[number], state_dir, allowed):
            reduced = _watched if failed is None else _found
            finding = reduced(GroupOperations(model, groups[number]).harness, trace, number)
        if finding is not None:
            return finding
    raise VfioToolError(
        "all goes as expected now: it does not show again by doing the same",
        hint="it may take its time, or two at once: stress the same workload for longer",
    )


@contextlib.contextmanager
def _taken(group: GroupSpec, state_dir: str, allowed: Collection[str]) -> Iterator[None]:
    lease = DeviceLease(group.members, state_dir, allowed, lambda _: None)
    try:
        yield
    finally:
        lost = lease.give_back(GIVE_BACK_SECONDS)
    if lost:
        raise VfioToolError(f"not all is as it was: {lost[0]}", hint="'vfiotool restore' gives devices back")


def _found(harness: GroupHarness, trace: Trace, number: int) -> Finding | None:
    with contextlib.closing(harness):
        for calls in (failing_prefix(trace, number), calls_of(trace)[number]):
            if finding := shrunk(harness, calls, unit=number):
                return finding
    return None


def _watched(harness: GroupHarness, trace: Trace, number: int) -> Finding | None:
    with contextlib.closing(harness), contextlib.closing(ReplayMonitors(harness)) as observer:
        return shrunk(harness, calls_of(trace)[number], unit=number, watch=observer)
