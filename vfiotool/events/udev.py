"""Uevents of PCI devices, from udevd or directly from the kernel (pyudev)."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyudev

_UDEVD_SOCKET = "/run/udev/control"
_CONNECT_SECONDS = 1.0
_BUFFER_BYTES = 8 << 20


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

    Receives from udevd, after its rules have run, or from the kernel if no udevd runs. A handle: close it,
    or use it as a context manager. Threads must not share it.
    """

    def __init__(self) -> None:
        self.source = "udev" if _udevd_listens() else "kernel"
        self._monitor = open_monitor(self.source, subsystem="pci")

    def __enter__(self) -> DeviceEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening. Any number of times."""
        self._monitor = None

    def fileno(self) -> int:
        """Return a descriptor that polls readable when an event waits."""
        return int(self._monitor.fileno())

    def receive(self, timeout: float) -> Iterator[DeviceEvent]:
        """Yield events as they arrive, until ``timeout`` seconds from now."""
        deadline = time.monotonic() + timeout
        while (device := self._monitor.poll(max(0.0, deadline - time.monotonic()))) is not None:
            yield DeviceEvent(
                action=device.action,
                address=device.sys_name,
                driver=device.properties.get("DRIVER"),
                seqnum=int(device.properties.get("SEQNUM", 0)),
            )

    def missing(self, expected: Collection[tuple[str, str]], timeout: float) -> frozenset[tuple[str, str]]:
        """Wait for the expected events, given as (action, address); return those that did not arrive in time.

        ``timeout`` is in seconds. Other events are discarded.
        """
        waiting = set(expected)
        if waiting:
            for event in self.receive(timeout):
                waiting.discard((event.action, event.address))
                if not waiting:
                    break
        return frozenset(waiting)


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


def _udevd_listens() -> bool:
    """Return True if udevd accepts connections; the file of its socket remains after udevd has exited."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.settimeout(_CONNECT_SECONDS)
        try:
            control.connect(_UDEVD_SOCKET)
        except TimeoutError:
            return True  # udevd runs, and is busy
        except OSError:
            return False
    return True
