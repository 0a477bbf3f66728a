"""A rescan is of the whole machine: it would bring back what another process has just removed, too."""

from __future__ import annotations

import fcntl
import os
import time

from vfiotool.stress.action import Outcome

RESCAN_FILE = "/sys/bus/pci/rescan"

_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.005


class BusLock:
    """Held by whoever has devices off the bus. A handle of one thread; who dies lets go of it."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def take(self) -> Outcome:
        """Wait for the lock, if this is not held already; say so where somebody else keeps it too long."""
        if self._fd is not None:
            return Outcome()
        fd, deadline = os.open(RESCAN_FILE, os.O_WRONLY | os.O_CLOEXEC), time.monotonic() + _PATIENCE_SECONDS
        while not _is_taken(fd):
            if time.monotonic() > deadline:
                os.close(fd)
                return Outcome(note=f"somebody else has had devices off the bus for {_PATIENCE_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)  # the call that waits would do so for ever
        self._fd = fd
        return Outcome()

    def release(self) -> None:
        """Let others have it. Any number of times."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # a child may have inherited the fd
            os.close(self._fd)
            self._fd = None


def _is_taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
