"""A real guest from the outside: its input and output, its loss, and that it leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import need_guests
from tests.support.guest import ONE_CPU

PROGRAM = os.path.join(os.path.dirname(sys.executable), "vfiotool")
SECONDS = 400  # far more than any of these takes: a hang must not stop the tests
MEMORY = "1031M"  # an unusual size, which identifies the guests of these tests


@pytest.fixture(scope="module", autouse=True)
def lab() -> None:
    """Skip, with the reason, if no guest can be started."""
    need_guests()
    first = run("--", "true")  # it prints the download of the kernel, if the kernel is not cached
    assert first.returncode == 0, first.stderr.decode()


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """Check after each test that no guest of this process runs."""
    yield
    assert guests() == []


def guests() -> list[int]:
    """Return the processes that run a guest of this process."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in arguments[0] and MEMORY.encode() in arguments:
            found.append(int(pid))
    return found


def command(*arguments: str, kernel: str = "6.1") -> list[str]:
    return [PROGRAM, "lab", "run", "--kernel", kernel, "--memory", MEMORY, *ONE_CPU, *arguments]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), input=stdin, capture_output=True, timeout=SECONDS, check=False)


def test_bytes_and_status_pass_and_the_host_is_unchanged(tmp_path: Path) -> None:
    """The bytes exceed every buffer on the way, and include all values."""
    mine = tmp_path / "mine"
    mine.write_text("the host's")
    data = os.urandom(3 << 20)
    script = f"cat; echo guest > {mine}; echo new > {tmp_path}/new; cat {mine} >&2; pwd >&2; kill -9 $$"
    result = run("--", "sh", "-c", script, stdin=data)
    assert result.returncode == 128 + signal.SIGKILL
    assert result.stdout == data
    assert result.stderr == f"guest\n{os.getcwd()}\n".encode()
    assert mine.read_text() == "the host's"
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.full
def test_a_panic_is_125_with_the_end_of_the_console() -> None:
    result = run("--", "sh", "-c", "echo before; echo c > /proc/sysrq-trigger; echo after")
    assert result.returncode == 125
    assert result.stdout == b"before\n"
    error, hint, *console = result.stderr.decode().splitlines()
    assert error.startswith("error: the guest was lost")
    assert error.endswith("(Kernel panic - not syncing: sysrq triggered crash)")
    assert hint.startswith("hint:")
    assert any("sysrq triggered crash" in line for line in console)
    assert any("sysrq_handle_crash" in line for line in console)


@pytest.mark.full
def test_a_command_over_its_time_is_125() -> None:
    result = run("--timeout", "0.5", "--", "sleep", "1000")
    assert result.returncode == 125
    assert b"longer than 0.5 seconds" in result.stderr


@pytest.mark.full
def test_a_terminal_passes_with_its_size() -> None:
    script = "trap 'stty size; exit 5' WINCH; stty size; while :; do sleep 0.1; done"
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        os.execv(PROGRAM, command("--", "sh", "-c", script))  # noqa: S606 - no shell is meant
    before = termios.tcgetattr(terminal)
    read_until(terminal, b"33 77")
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 99, 0, 0))
    read_until(terminal, b"44 99")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert termios.tcgetattr(terminal) == before
    os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> None:
    """Read a terminal up to these bytes. The end of input or a long silence fails the test."""
    seen = b""
    while wanted not in seen:
        signal.alarm(SECONDS)
        seen += os.read(terminal, 4096)
        signal.alarm(0)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_signal_ends_the_guest_too(number: signal.Signals, status: int) -> None:
    """Also during the boot, and if vfiotool itself has no time to clean up."""
    program = subprocess.Popen(command("--", "true"), stdin=subprocess.DEVNULL)
    wait_for(lambda: bool(guests()))
    program.send_signal(number)
    assert program.wait(SECONDS) == status
    wait_for(lambda: not guests())


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds: no event reports the start or end of another process's child."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
