"""Uevents for the timeline: as the kernel sends them, or as udevd passes them on after its rules (pyudev)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, Literal

from vfiotool.events.entry import Entry, now
from vfiotool.events.udev import open_monitor
from vfiotool.host.attributes import find_group
from vfiotool.host.tree import Tree

_SUBSYSTEMS = ("pci", "vfio", "vfio-dev")


class Uevents:
    """The uevents of PCI devices and of VFIO's nodes.

    From the kernel all uevents of the machine come in the order of their numbers, so that one which is
    missing shows: then there is an entry ``missed``. The network namespaces of other processes have
    uevents of their own, which are missing here, too.
    """

    def __init__(self, source: Literal["kernel", "udev"], tree: Tree) -> None:
        self._source = source
        self._tree = tree
        self._last: int | None = None
        self._groups: dict[str, int] = {}  # a device that is gone has no link any more
        self._monitor = open_monitor(source)

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def read(self) -> Iterator[Entry]:
        while True:
            try:
                device = self._monitor.poll(0)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # some were dropped, which the next number shows
            if device is None:
                return
            seqnum = int(device.properties.get("SEQNUM", 0))
            yield from self._missed(seqnum)
            if device.subsystem in _SUBSYSTEMS:
                yield self._entry(device, seqnum)

    def close(self) -> None:
        self._monitor = None

    def _missed(self, seqnum: int) -> Iterator[Entry]:
        if self._source == "kernel":
            if self._last is not None and seqnum > self._last + 1:
                detail = f"uevents {self._last + 1} to {seqnum - 1}"
                yield Entry(now(), self._source, "missed", seqnum=seqnum, detail=detail)
            self._last = seqnum

    def _entry(self, device: Any, seqnum: int) -> Entry:
        address, group, detail = None, None, ""
        if device.subsystem == "pci":
            address = device.sys_name
            group = self._group(address)
        elif device.subsystem == "vfio":
            group = int(device.sys_name) if device.sys_name.isdigit() else None
            detail = device.device_node or ""
        else:  # vfio-dev: its parent is the device
            address = os.path.basename(os.path.dirname(os.path.dirname(device.sys_path)))
            group = self._group(address)
            detail = device.device_node or device.sys_name
        return Entry(
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
