"""Reduce a finding to the fewest calls that still show the finding, on the devices themselves."""

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
from vfiotool.stress.monitors.resources import CycleLeakCheck, Resources, read_process_resources
from vfiotool.stress.operations.registry import GroupOperations
from vfiotool.stress.record import Expectation, Record
from vfiotool.stress.reproduce.replay import Finding, MonitorFindings, calls_of, failing_prefix, shrunk
from vfiotool.stress.results.trace import Trace

_SETTLE_SECONDS = 2.0
_POLL_SECONDS = 0.01


class ReplayMonitors:
    """Monitors a replay. A handle of one thread: close the monitors after use.

    The use of VFIO by other processes counts too: some kernel functions do not name a device.
    """

    def __init__(self, harness: GroupHarness) -> None:
        self._harness = harness
        self._monitors = MonitorSet(harness.tree, harness.model.era, harness.spec.members)
        self.begin()

    def begin(self) -> None:
        """Start with empty monitors. The group is at rest."""
        self._monitors.renew()
        self._leaks = CycleLeakCheck()
        self._leaks.grown("replay", self._held())

    def announce(self, expected: Expectation) -> None:
        """Watch the groups and devices that the next call involves."""
        for group, addresses in self._harness.about(expected):
            self._monitors.watch(group, addresses)

    def end(self, records: Sequence[Record]) -> MonitorFindings:
        """Wait for the last events, and return the findings."""
        for record in records:
            self._monitors.note(record)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not self._is_settled() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._monitors.finish()
        leaked = [f"{finding} more after a replay" for finding in self._leaks.grown("replay", self._held())]
        logged = next((line["text"] for line in self._monitors.kernel_log.document()), "")
        return MonitorFindings((*self._monitors.found(), *leaked), logged)

    def close(self) -> None:
        """Stop the monitors. Further calls do nothing."""
        self._monitors.close()

    def _is_settled(self) -> bool:
        self._monitors.read()
        self._monitors.feed(now())
        return self._monitors.is_settled()

    def _held(self) -> Resources:
        """Close what the kernel returned against the model, and return what this process holds at rest."""
        self._harness.clients.close()
        return read_process_resources((os.getpid(),), self._harness.tree)


def reduce(trace: Trace, groups: Sequence[GroupSpec], state_dir: str, allowed: Collection[str]) -> Finding:
    """Return the fewest calls that show the first finding of a trace.

    If a call had an unexpected outcome, replay first its cycle, then all calls of its group. Otherwise replay
    all calls of each group with monitors. The devices are taken for the replays and given back.

    Raises:
        VfioToolError: every outcome is as expected now, or the devices could not be given back.
        Others as ``DeviceLease`` does.
    """
    model = kernel_model(Tree(), state_dir)
    failed = next((line.unit for line in trace.lines if line.unexpected), None)
    for number in calls_of(trace) if failed is None else [failed]:
        with _taken(groups[number], state_dir, allowed):
            reduced = _with_monitors if failed is None else _by_outcomes
            finding = reduced(GroupOperations(model, groups[number]).harness, trace, number)
        if finding is not None:
            return finding
    raise VfioToolError(
        "every outcome is as expected now: the same operations do not show the finding again",
        hint="the finding may need time or concurrency: stress the same workload for longer",
    )


@contextlib.contextmanager
def _taken(group: GroupSpec, state_dir: str, allowed: Collection[str]) -> Iterator[None]:
    lease = DeviceLease(group.members, state_dir, allowed, lambda _: None)
    try:
        yield
    finally:
        lost = lease.give_back(GIVE_BACK_SECONDS)
    if lost:
        raise VfioToolError(
            f"a device is not in its former state: {lost[0]}", hint="'vfiotool restore' gives devices back"
        )


def _by_outcomes(harness: GroupHarness, trace: Trace, number: int) -> Finding | None:
    with contextlib.closing(harness):
        for calls in (failing_prefix(trace, number), calls_of(trace)[number]):
            if finding := shrunk(harness, calls, unit=number):
                return finding
    return None


def _with_monitors(harness: GroupHarness, trace: Trace, number: int) -> Finding | None:
    with contextlib.closing(harness), contextlib.closing(ReplayMonitors(harness)) as monitors:
        return shrunk(harness, calls_of(trace)[number], unit=number, watch=monitors)
