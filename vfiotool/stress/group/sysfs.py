"""System calls of operations: ioctls, writes to sysfs that may block, and the lock of the PCI bus."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time

from vfiotool.stress.record import Outcome
from vfiotool.util import kernel_files
from vfiotool.util.child import start_child
from vfiotool.util.tasks import sleeps_in

RESCAN_FILE = "/sys/bus/pci/rescan"

_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.001
_BUS_SECONDS = 60.0
_BUS_POLL_SECONDS = 0.005
_WAITS_IN = ("vfio_unregister_group_dev", "vfio_del_group_dev")  # since 5.14; up to 5.13
_RESULT_BYTES = 4


def ioctl(fd: int, request: int, argument: bytearray) -> int:
    """Execute an ioctl, which may change its argument; return the kernel's result, or -errno."""
    try:
        result: int = fcntl.ioctl(fd, int(request), argument)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return result


class SysfsWriter:
    """A write to sysfs in a child process. Only one thread may use a writer.

    Nothing signals the process, ``WorkerPool.abandon`` included: a signal moves a task that waits for a user
    of the device from state S to D, and SIGKILL has no effect before the device is released.
    """

    def __init__(self, path: str, text: str) -> None:
        """Start to write."""

        def work(parent: int) -> None:
            os.write(parent, kernel_files.write(path, text).to_bytes(_RESULT_BYTES, "little"))

        self.pid, self._line = start_child(work)

    def blocks(self) -> bool:
        """Wait until the write sleeps for a user of the device, or has returned; return True if it sleeps."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not sleeps_in(self.pid, _WAITS_IN):
            if self.has_ended(0) or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)  # no event announces that a task sleeps in the kernel
        return True

    def result(self) -> Outcome:
        """Return the errno of the write, or a note that the write still waits."""
        if not self.has_ended(_PATIENCE_SECONDS):
            self.abandon()
            return Outcome(note=f"still waits after {_PATIENCE_SECONDS:g} s (pid {self.pid})")
        code = int.from_bytes(os.read(self._line, _RESULT_BYTES), "little")
        os.close(self._line)
        os.waitpid(self.pid, 0)
        return Outcome(code)

    def abandon(self) -> None:
        """Leave the child alone: nobody reads its result."""
        os.close(self._line)

    def has_ended(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the write to return; return True if it has returned."""
        return bool(select.select([self._line], [], [], seconds)[0])


class BusLock:
    """A lock that a process holds while devices are off the bus. Not thread-safe.

    The kernel releases the lock of a process that dies.
    """

    def __init__(self) -> None:
        self._fd: int | None = None

    def take(self) -> Outcome:
        """Wait for the lock, unless it is held already; the outcome has a note if that takes too long."""
        if self._fd is not None:
            return Outcome()
        fd, deadline = os.open(RESCAN_FILE, os.O_WRONLY | os.O_CLOEXEC), time.monotonic() + _BUS_SECONDS
        while not _is_taken(fd):
            if time.monotonic() > deadline:
                os.close(fd)
                return Outcome(note=f"another process has kept devices off the bus for {_BUS_SECONDS:g} s")
            time.sleep(_BUS_POLL_SECONDS)  # flock() without LOCK_NB has no timeout
        self._fd = fd
        return Outcome()

    def release(self) -> None:
        """Release the lock, if it is held."""
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
