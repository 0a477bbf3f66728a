"""The monitors of a run, and the event sources that feed the monitors."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

from vfiotool.errors import UnsupportedError
from vfiotool.events.entry import EventSource, TimelineEntry, now
from vfiotool.events.kmsg import KernelLog
from vfiotool.events.probes import KernelProbes
from vfiotool.events.tracefs import TraceInstance
from vfiotool.events.uevents import Uevents
from vfiotool.host.era import Era
from vfiotool.host.tree import Tree
from vfiotool.stress.monitors.kernel_log import KernelLogMonitor
from vfiotool.stress.monitors.probes import ProbeMonitor
from vfiotool.stress.monitors.uevents import UeventMonitor
from vfiotool.stress.operations.race import RACE
from vfiotool.stress.record import Record


class MonitorSet:
    """A handle of one thread. ``lacking`` names the sources that this machine lacks, with the reasons."""

    def __init__(self, tree: Tree, era: Era, addresses: Collection[str]) -> None:
        self.lacking: list[str] = []
        self._addresses = set(addresses)
        self._has_probes = self._has_log = False
        self._held: deque[tuple[float, TimelineEntry]] = deque()
        self._stack = contextlib.ExitStack()
        self.sources: list[EventSource] = []
        self._is_ordered = era is not Era.DEFERRED_PUT
        try:
            self._probed = self._open(tree)
        except BaseException:
            self.close()
            raise
        self._create_monitors()

    def renew(self) -> None:
        """Start with empty monitors, and drop all pending events."""
        self.read()
        self._held.clear()
        self._create_monitors()

    def read(self) -> None:
        """Read the pending events of all sources."""
        for source in self.sources:
            for entry in source.read():
                self._held.append((now(), entry))

    def feed(self, until: float) -> None:
        """Feed the events that were read up to a time to the monitors, CLOCK_MONOTONIC in seconds.

        All groups and devices that sent events up to that time must have been passed to ``watch``.
        """
        while self._held and self._held[0][0] <= until:
            entry = self._held.popleft()[1]
            if entry.source == "probe":
                self.probes.see(entry)
            elif entry.source == "kmsg":
                self.kernel_log.see(entry)
            else:
                self.uevents.see(entry)

    def watch(self, group: int, addresses: Collection[str]) -> None:
        """Watch the node of a group and some of its devices from now on."""
        self._addresses |= set(addresses)
        self.uevents.watch(group, addresses)

    def note(self, record: Record) -> None:
        """Expect the uevents and kernel functions of a call."""
        expected = record.expected
        if record.is_unexpected and record.outcome.errno:
            return  # a call that failed has no effects
        self.uevents.expect(record.group, expected.uevents)
        self.probes.expect(expected.probes)
        # An unbind also blocks for a moment while another process fails to open the device.
        if expected.waits_for or record.call.name == RACE:
            self.kernel_log.expect_blocked()

    def is_settled(self) -> bool:
        """Return True if all expected events have arrived."""
        return not self._held and self.uevents.is_settled() and self.probes.is_settled()

    def finish(self) -> None:
        """End the observation: no more events will be fed."""
        self.feed(now())
        for monitor in (self.uevents, self.probes, self.kernel_log):
            monitor.finish()

    def findings(self) -> list[str]:
        """Return the findings so far, and the sources that this machine lacks."""
        return self.found() + self.lacking

    def found(self) -> list[str]:
        """Return the findings so far."""
        return [*self.uevents.findings(), *self.probes.findings(), *self.kernel_log.findings()]

    def document(self) -> dict[str, Any]:
        """Return the parts of the report that the monitors measure; None without a source."""
        return {
            "udev": self.uevents.document(),
            "probes": self.probes.document() if self._has_probes else None,
            "kernel_log": self.kernel_log.document() if self._has_log else None,
        }

    def leave_to_parent(self) -> None:
        """In a child process: close the sources. A stuck child would otherwise keep the sources open."""
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for source in self.sources:
            if (fd := source.fileno()) is not None:
                os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)

    def close(self) -> None:
        """Close all sources. Further calls do nothing. ``lacking`` names a source that cannot be removed."""
        try:
            self._stack.close()
        except OSError as error:
            self.lacking.append(f"{error.filename or 'an event source'} cannot be removed: {error.strerror}")

    def _create_monitors(self) -> None:
        self.uevents = UeventMonitor(is_ordered=self._is_ordered)
        self.kernel_log = KernelLogMonitor()
        self.probes = ProbeMonitor(self._probed, self._addresses)

    def _open(self, tree: Tree) -> Collection[str]:
        self._add(Uevents("kernel", tree))
        probed: Collection[str] = ()
        offset = 0.0
        with self._optional("the kernel's functions cannot be probed"):
            instance = self._stack.enter_context(TraceInstance())
            offset = instance.log_offset
            probes = KernelProbes(instance)
            probed = probes.probed
            self._add(probes)
            self._has_probes = True
        with self._optional("the kernel's log cannot be read"):
            self._add(KernelLog(offset))
            self._has_log = True
        return probed

    def _add(self, source: EventSource) -> None:
        self.sources.append(source)
        self._stack.callback(source.close)

    @contextlib.contextmanager
    def _optional(self, lacking: str) -> Iterator[None]:
        try:
            yield
        except UnsupportedError as error:
            self.lacking.append(f"{lacking}: {error.message}")
        except OSError as error:
            self.lacking.append(f"{lacking}: {error.strerror}")
