"""Writes to sysfs and ioctls of operations: direct, in a child process, under the bus lock."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import time

from vfiotool.stress.record import Outcome
from vfiotool.util.child import start_child

RESCAN_FILE = "/sys/bus/pci/rescan"

_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.001
_BUS_SECONDS = 60.0
_BUS_POLL_SECONDS = 0.005
_WAITS_IN = ("vfio_unregister_group_dev", "vfio_del_group_dev")  # since 5.14; up to 5.13
_SLEEPS = re.compile(r"^State:\t[SD]", re.MULTILINE)
_RESULT_BYTES = 4


def write(path: str, text: str) -> int:
    """Write in one system call; return 0 or the errno."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def ask(fd: int, request: int, question: bytearray) -> int:
    """Do an ioctl, which writes its answer into the question; what the kernel returns, or -errno."""
    try:
        result: int = fcntl.ioctl(fd, int(request), question)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return result


class SysfsWriter:
    """A handle of one thread. The process is never signalled: a task that waits so would only get stuck."""

    def __init__(self, path: str, text: str) -> None:
        """Begin to write."""

        def work(parent: int) -> None:
            os.write(parent, write(path, text).to_bytes(_RESULT_BYTES, "little"))

        self.pid, self._line = start_child(work)

    def comes_to_wait(self) -> bool:
        """Wait until it sleeps until a device is let go of, or has ended; say whether it sleeps."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._waits():
            if self.has_ended(0) or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)  # nothing tells of a task that waits in the kernel
        return True

    def result(self) -> Outcome:
        """Return what came of it, or that it still waits."""
        if not self.has_ended(_PATIENCE_SECONDS):
            self.abandon()
            return Outcome(note=f"still waits after {_PATIENCE_SECONDS:g} s (pid {self.pid})")
        code = int.from_bytes(os.read(self._line, _RESULT_BYTES), "little")
        os.close(self._line)
        os.waitpid(self.pid, 0)
        return Outcome(code)

    def abandon(self) -> None:
        """Leave it to itself."""
        os.close(self._line)

    def has_ended(self, seconds: float) -> bool:
        """Wait for so long for it to end, and say whether it has."""
        return bool(select.select([self._line], [], [], seconds)[0])

    def _waits(self) -> bool:
        """Say whether it sleeps there: one that only gave way to another task has the same stack."""
        try:
            before, stack, after = map(self._proc, ("status", "stack", "status"))
        except OSError:
            return False
        sleeps = before == after and _SLEEPS.search(after)
        return bool(sleeps) and any(f" {name}+" in stack.partition("\n")[0] for name in _WAITS_IN)

    def _proc(self, name: str) -> str:
        with open(f"/proc/{self.pid}/{name}", encoding="ascii") as file:
            return file.read()


class BusLock:
    """Held by whoever has devices off the bus. A handle of one thread; who dies lets go of it."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def take(self) -> Outcome:
        """Wait for the lock, if this is not held already; say so where somebody else keeps it too long."""
        if self._fd is not None:
            return Outcome()
        fd, deadline = os.open(RESCAN_FILE, os.O_WRONLY | os.O_CLOEXEC), time.monotonic() + _BUS_SECONDS
        while not _is_taken(fd):
            if time.monotonic() > deadline:
                os.close(fd)
                return Outcome(note=f"somebody else has had devices off the bus for {_BUS_SECONDS:g} s")
            time.sleep(_BUS_POLL_SECONDS)  # the call that waits would do so for ever
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
