"""What watches a run: sources of events, and the monitors that are fed from them and from its operations."""

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
    """A handle of one thread. ``lacking`` says what this machine does not let be watched, and why."""

    def __init__(self, tree: Tree, era: Era, addresses: Collection[str]) -> None:
        self.lacking: list[str] = []
        self._addresses = set(addresses)
        self._held: deque[tuple[float, TimelineEntry]] = deque()
        self._stack = contextlib.ExitStack()
        self.sources: list[EventSource] = []
        self._is_ordered = era is not Era.DEFERRED_PUT
        try:
            self._probed = self._open(tree)
        except BaseException:
            self.close()
            raise
        self._have_monitors()

    def renew(self) -> None:
        """Take it that nothing was done or watched yet, and pass over what has come."""
        self.read()
        self._held.clear()
        self._have_monitors()

    def read(self) -> None:
        """Take what the sources have."""
        for source in self.sources:
            for entry in source.read():
                self._held.append((now(), entry))

    def feed(self, until: float) -> None:
        """Give the monitors what had come by then, in seconds of CLOCK_MONOTONIC.

        What is to be watched must be known until then: it is told of before it sends its first.
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
        """Watch the node of a group, and devices of it, from now on."""
        self._addresses |= set(addresses)
        self.uevents.watch(group, addresses)

    def note(self, record: Record) -> None:
        """Take what an operation must have sent and run."""
        expected = record.expected
        if record.is_unexpected and record.outcome.errno:
            return  # it was not done, so nothing follows
        self.uevents.expect(record.group, expected.uevents)
        self.probes.expect(expected.probes)
        # An unbind waits for a moment, too, while a device is opened that cannot be.
        if expected.waits_for or record.call.name == RACE:
            self.kernel_log.expect_blocked()

    def is_settled(self) -> bool:
        """Say whether all has come that must."""
        return not self._held and self.uevents.is_settled() and self.probes.is_settled()

    def finish(self) -> None:
        """Take it that nothing more comes."""
        self.feed(now())
        for monitor in (self.uevents, self.probes, self.kernel_log):
            monitor.finish()

    def findings(self) -> list[str]:
        """Return what the monitors have found so far, and what cannot be watched."""
        return self.found() + self.lacking

    def found(self) -> list[str]:
        """Return what the monitors have found so far."""
        return [*self.uevents.findings(), *self.probes.findings(), *self.kernel_log.findings()]

    def document(self) -> dict[str, Any]:
        """Return their parts of the report."""
        return {
            "udev": self.uevents.document(),
            "probes": self.probes.document(),
            "kernel_log": self.kernel_log.document(),
        }

    def leave_to_parent(self) -> None:
        """In a child: have nothing open that is watched. A child that is stuck would keep it from ending."""
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for source in self.sources:
            if (fd := source.fileno()) is not None:
                os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)

    def close(self) -> None:
        """Stop watching. Any number of times; what cannot be taken away is lacking."""
        try:
            self._stack.close()
        except OSError as error:
            self.lacking.append(f"{error.filename or 'what watched'} cannot be removed: {error.strerror}")

    def _have_monitors(self) -> None:
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
        with self._optional("the kernel's log cannot be read"):
            self._add(KernelLog(offset))
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
