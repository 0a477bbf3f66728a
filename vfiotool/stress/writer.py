"""A write to sysfs that may wait in the kernel, from a process of its own."""

from __future__ import annotations

import os
import re
import select
import time

from vfiotool.host.child import start_child
from vfiotool.stress.action import Outcome
from vfiotool.stress.kernel_calls import write

_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.001
_WAITS_IN = ("vfio_unregister_group_dev", "vfio_del_group_dev")  # since 5.14; up to 5.13
_SLEEPS = re.compile(r"^State:\t[SD]", re.MULTILINE)
_RESULT_BYTES = 4


class Writer:
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
