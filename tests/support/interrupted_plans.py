"""Plans that are cut off: the process that executes one is killed at a chosen moment."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

from tests.support.binding_bench import Bench
from vfiotool.binding.machine import GO
from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import Plan
from vfiotool.testing import FakeHost

Run = Callable[[Binding], Plan]


def leftovers(bench: Bench) -> list[str]:
    """Return the files in the state folder other than records and locks."""
    folders = [f"{bench.state_dir}/{name}" for name in ("pending", "transactions")]
    return [f"{folder}/{name}" for folder in folders for name in os.listdir(folder)]


def die_at(bench: Bench, moment: int) -> None:
    """Kill this process at the n-th moment of an operation.

    On a kernel, before each write to the machine and while it is done. On the fake, where writes are
    done whole, before each change of a file of the state folder as well.
    """
    pid, moments = os.getpid(), itertools.count()
    machine: Any = bench.machine.machine
    write, write_fd = machine.write, os.write

    def may_die() -> None:
        if os.getpid() == pid and next(moments) == moment:
            os.kill(pid, signal.SIGKILL)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            may_die()
            return call(*args, **options)

        return wrapper

    def write_and_die(fd: int, content: bytes) -> int:
        written = write_fd(fd, content)
        if content == GO:
            may_die()
        return written

    def arm_files(*, armed: bool) -> None:
        for name, call in files.items():
            setattr(os, name, dying(call) if armed else call)

    def write_whole(*args: Any, **options: Any) -> None:
        arm_files(armed=False)
        try:
            write(*args, **options)
        finally:
            arm_files(armed=True)

    if isinstance(machine, FakeHost):
        files = {name: getattr(os, name) for name in ("write", "replace", "unlink")}
        arm_files(armed=True)
        machine.write = dying(write_whole)  # type: ignore[method-assign]
    else:
        os.write = write_and_die  # type: ignore[assignment]
        machine.write = dying(write)


def is_killed(bench: Bench, run: Run, moment: int) -> bool:
    """Run an operation in a process that is killed at a moment; return True if it got that far."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            die_at(bench, moment)
            run(bench.binding())
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0
