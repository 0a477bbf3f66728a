"""All that is mapped of a device: put to sleep, woken and ended together."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfiotool.vfio.mmio.mmio import Mmio

LOW_POWER = "the device sleeps", "leave its low_power() first"


class Windows:
    """What is mapped of a device, held weakly, and the reasons for which it sleeps.

    The kernel answers accesses to a device that is off with SIGBUS, which would end the process; there can be
    more reasons than one. For one thread at a time: a ``DeviceFile`` sees to that.
    """

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Mmio] = weakref.WeakSet()
        self._reasons: dict[str, str] = {}

    def add(self, window: Mmio) -> None:
        """Take in what was mapped just now; it sleeps if the others do."""
        self._all.add(window)
        for reason in self._reasons.items():
            window.sleep(*reason)

    def sleep(self, why: str, hint: str) -> None:
        """Keep accesses from the device; ``hint`` tells what ends this reason."""
        self._reasons[why] = hint
        for window in tuple(self._all):
            window.sleep(why, hint)

    def wake(self, why: str, fd: int) -> None:
        """End a reason; with the last one, accesses reach the device's file again.

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
        """Close them all."""
        for window in tuple(self._all):
            window.revoke(reason)
