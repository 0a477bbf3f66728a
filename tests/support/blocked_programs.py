"""Programs that wait in the kernel while a test watches them."""

from __future__ import annotations

import subprocess

from tests.support.guest import await_
from vfiotool.util import tasks
from vfiotool.util.tasks import task_state

Program = subprocess.Popen[bytes]

UNBIND = "vfio_unregister_group_dev"
"""The kernel's function in which the removal of a driver waits for a device's users."""


def writing(file: str, content: str) -> Program:
    """Start to write to a file in sysfs."""
    return subprocess.Popen(["sh", "-c", 'printf %s "$1" >"$2"', "sh", content, file])


def reading(file: str) -> Program:
    """Start to read a file in sysfs."""
    return subprocess.Popen(["cat", file], stdout=subprocess.DEVNULL)


def state(program: Program) -> str:
    """Return the letter of a program's state: S can be woken by signals, D cannot."""
    found = task_state(program.pid)
    assert found is not None
    return found


def pending_signals(program: Program) -> int:
    """Return the signals that a program's thread was sent and has not taken, as bits; signal 1 is bit 0."""
    with open(f"/proc/{program.pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)


def sleeps_in(program: Program, function: str) -> bool:
    """Return True if a program sleeps in a function of the kernel."""
    return tasks.sleeps_in(program.pid, (function,))


def await_sleep(program: Program, function: str) -> None:
    """Wait until a program sleeps in a function of the kernel's."""
    await_(f"{program.args!r} sleeps in {function}", lambda: sleeps_in(program, function))


def comes_to_wait(program: Program, function: str) -> bool:
    """Wait until a program sleeps in a function of the kernel's or ends well; say whether it sleeps."""
    await_(
        f"{program.args!r} ends or sleeps in {function}",
        lambda: program.poll() is not None or sleeps_in(program, function),
    )
    assert program.returncode in (None, 0)
    return program.returncode is None


def those_that_wait(readers: dict[str, Program]) -> set[str]:
    """Return which of the programs that read attributes, by their names, come to wait in the kernel."""
    return {name for name, reader in readers.items() if comes_to_wait(reader, f"{name}_show")}
