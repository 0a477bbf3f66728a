"""The uevents of the timeline: from the kernel, or from udevd after its rules have run (pyudev)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, Literal

from vfiotool.events.entry import TimelineEntry, now
from vfiotool.events.udev import open_monitor
from vfiotool.host.attributes import find_group
from vfiotool.host.tree import Tree

_LATE = 1.0
"""Seconds after which a missing number is reported."""
_SUBSYSTEMS = ("pci", "vfio", "vfio-dev")


class Uevents:
    """The uevents of PCI devices and of VFIO's nodes.

    The kernel sends all uevents of the machine, so a missing sequence number is detected. The entry
    ``missed`` follows a second later, because two processors may send their uevents out of order (since
    6.11). Uevents in network namespaces of other processes are not received, and count as missing, too.
    """

    def __init__(self, source: Literal["kernel", "udev"], tree: Tree) -> None:
        self._source = source
        self._tree = tree
        self._numbers = _Numbers()
        self._groups: dict[str, int] = {}  # the link of a device is gone with it
        self._monitor = open_monitor(source)

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def read(self) -> Iterator[TimelineEntry]:
        yield from self._received()
        for first, last in self._numbers.missing(now()):
            detail = f"uevents {first} to {last}"
            yield TimelineEntry(now(), self._source, "missed", seqnum=last + 1, detail=detail)

    def _received(self) -> Iterator[TimelineEntry]:
        while True:
            try:
                device = self._monitor.poll(0)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # uevents were dropped; the next number shows it
            if device is None:
                return
            seqnum = int(device.sequence_number)
            if self._source == "kernel":
                self._numbers.take(seqnum, now())
            subsystem = device.subsystem
            if subsystem in _SUBSYSTEMS:
                yield self._entry(device, subsystem, seqnum)

    def close(self) -> None:
        self._monitor = None

    def _entry(self, device: Any, subsystem: str, seqnum: int) -> TimelineEntry:
        address, group, detail = None, None, ""
        if subsystem == "pci":
            address = device.sys_name
            group = self._group(address)
        elif subsystem == "vfio":
            group = int(device.sys_name) if device.sys_name.isdigit() else None
            detail = device.device_node or ""
        else:  # vfio-dev: the parent is the PCI device
            address = os.path.basename(os.path.dirname(os.path.dirname(device.sys_path)))
            group = self._group(address)
            detail = device.device_node or device.sys_name
        return TimelineEntry(
            now(),
            self._source,
            device.action,
            address=address,
            group=group,
            driver=device.properties.get("DRIVER"),
            seqnum=seqnum,
            detail=detail,
        )

    def _group(self, address: str) -> int | None:
        number = find_group(self._tree, address)
        if number is not None:
            self._groups[address] = number
        return self._groups.get(address)


class _Numbers:
    """Tracks which sequence numbers have arrived, and which are missing."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._gaps: list[tuple[int, int, float]] = []  # first, last, since when

    def take(self, seqnum: int, time: float) -> None:
        """Record a number that has just arrived."""
        if self._last is None or seqnum > self._last:
            if self._last is not None and seqnum > self._last + 1:
                self._gaps.append((self._last + 1, seqnum - 1, time))
            self._last = seqnum
            return
        for at, (first, last, since) in enumerate(self._gaps):
            if first <= seqnum <= last:
                parts = ((first, seqnum - 1, since), (seqnum + 1, last, since))
                self._gaps[at : at + 1] = [part for part in parts if part[0] <= part[1]]
                return

    def missing(self, time: float) -> Iterator[tuple[int, int]]:
        """Yield each range (first, last) that has been missing for a second, once."""
        while self._gaps and self._gaps[0][2] < time - _LATE:
            first, last, _ = self._gaps.pop(0)
            yield first, last
