"""Uevents of PCI devices, from udevd or directly from the kernel (pyudev)."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyudev

_UDEVD_SOCKET = "/run/udev/control"
_CONNECT_SECONDS = 1.0
_BUFFER_BYTES = 8 << 20
_UCRED = struct.Struct("iII")  # struct ucred, <linux/socket.h>


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """A uevent of a PCI device: ``action`` is the kernel's (``add``, ``bind``, ``unbind``, …).

    ``seqnum`` numbers all uevents since boot. ``driver`` is set only for ``bind``.
    """

    action: str
    address: str
    driver: str | None
    seqnum: int


class DeviceEvents:
    """Receives the uevents of PCI devices that are sent after this object is created.

    ``source`` is "udev" if udevd's events can be received, which come after its rules have run, else
    "kernel". ``out_of_sight`` is the reason if a udevd runs whose events cannot be received, else empty. A
    handle: close it, or use it as a context manager. Threads must not share it.
    """

    def __init__(self) -> None:
        runs, self.out_of_sight = _find_udevd()
        self.source = "udev" if runs and not self.out_of_sight else "kernel"
        self._kernel = open_monitor("kernel", subsystem="pci")
        self._udev = open_monitor("udev", subsystem="pci") if self.source == "udev" else None

    def __enter__(self) -> DeviceEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening. Any number of times."""
        self._kernel = self._udev = None

    def missing(self, expected: Collection[tuple[str, str]], timeout: float) -> frozenset[tuple[str, str]]:
        """Wait for events of the kernel, given as (action, address); return those that did not arrive.

        ``timeout`` is in seconds. Other events are discarded.
        """
        return _missing(self._kernel, expected, timeout)

    def unprocessed(
        self, expected: Collection[tuple[str, str]], timeout: float
    ) -> frozenset[tuple[str, str]]:
        """Wait until udevd has run its rules for events; return those that it did not report in time.

        Empty without a udevd in sight. After a call in which an event did not arrive, no call waits again.
        """
        if self._udev is None:
            return frozenset()
        left = _missing(self._udev, expected, timeout)
        if left:
            self._udev, self.source = None, "kernel"
        return left


def _missing(
    monitor: Any, expected: Collection[tuple[str, str]], timeout: float
) -> frozenset[tuple[str, str]]:
    waiting = set(expected)
    if waiting:
        for event in _receive(monitor, timeout):
            waiting.discard((event.action, event.address))
            if not waiting:
                break
    return frozenset(waiting)


def _receive(monitor: Any, timeout: float) -> Iterator[DeviceEvent]:
    deadline = time.monotonic() + timeout
    while (device := monitor.poll(max(0.0, deadline - time.monotonic()))) is not None:
        yield DeviceEvent(
            action=device.action,
            address=device.sys_name,
            driver=device.properties.get("DRIVER"),
            seqnum=int(device.properties.get("SEQNUM", 0)),
        )


def open_monitor(source: str, *, subsystem: str | None = None) -> Any:
    """Return a started pyudev monitor of ``udev`` or ``kernel`` uevents, of all subsystems or of only one."""
    monitor = pyudev.Monitor.from_netlink(_context(), source=source)
    if subsystem is not None:
        monitor.filter_by(subsystem=subsystem)
    with contextlib.suppress(
        OSError
    ):  # without root the buffer stays small, and a burst of events may overflow it
        monitor.set_receive_buffer_size(_BUFFER_BYTES)
    monitor.start()
    return monitor


@functools.cache
def _context() -> pyudev.Context:
    """Return pyudev's context, created once: finding libudev starts a process."""
    return pyudev.Context()


def _find_udevd() -> tuple[bool, str]:
    """Return whether udevd accepts connections, and why its events cannot be received, or an empty text.

    The file of its socket remains after udevd has exited. udevd sends its events in its own network namespace
    alone; the kernel sends its events in all of them.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.settimeout(_CONNECT_SECONDS)
        try:
            control.connect(_UDEVD_SOCKET)
        except TimeoutError:
            return True, ""  # udevd runs, and is busy
        except OSError:
            return False, ""
        pid, _uid, _gid = _UCRED.unpack(
            control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
    return True, _why_out_of_sight(pid)


def _why_out_of_sight(pid: int) -> str:
    """Return why events of the udevd whose socket is of process ``pid`` do not arrive, or an empty text.

    The process that made the socket may have exited: udevd stays in its namespace, which is that of pid 1.
    """
    try:
        theirs, ours = (
            _network_namespace(one) for one in (pid if os.path.exists(f"/proc/{pid}") else 1, "self")
        )
    except OSError:
        return ""  # this user may not look
    return "" if theirs == ours else "udevd is in another network namespace"


def _network_namespace(process: int | str) -> tuple[int, int]:
    status = os.stat(f"/proc/{process}/ns/net")
    return status.st_dev, status.st_ino
