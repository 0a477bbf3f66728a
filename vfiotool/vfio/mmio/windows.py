"""All mapped windows of a device, which are blocked, allowed and closed together."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfiotool.vfio.mmio.mmio import Mmio

LOW_POWER = "the device is in low power", "leave its low_power() context first"


class Windows:
    """The mapped windows of a device, held weakly, and the reasons why accesses to them are blocked.

    The kernel answers accesses to a device that is off with SIGBUS, which would end the process. There can
    be several reasons. For one thread at a time: a ``DeviceFile`` holds a lock.
    """

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Mmio] = weakref.WeakSet()
        self._reasons: dict[str, str] = {}

    def add(self, window: Mmio) -> None:
        """Add a new window; its accesses are blocked if those of the others are."""
        self._all.add(window)
        for reason in self._reasons.items():
            window.sleep(*reason)

    def sleep(self, why: str, hint: str) -> None:
        """Block accesses to the device; ``hint`` says how to end this reason."""
        self._reasons[why] = hint
        for window in tuple(self._all):
            window.sleep(why, hint)

    def wake(self, why: str, fd: int) -> None:
        """End a reason; without any reason left, accesses reach the device's file again.

        Raises:
            KernelError: the kernel's errno from mmap(2); the reason stays.
        """
        left = {other: hint for other, hint in self._reasons.items() if other != why}
        for window in tuple(self._all) if left != self._reasons else ():
            for reason in left.items():
                window.sleep(*reason)
            if not left:
                window.wake(fd)
        self._reasons = left

    def revoke(self, reason: str) -> None:
        """Close all windows."""
        for window in tuple(self._all):
            window.revoke(reason)
