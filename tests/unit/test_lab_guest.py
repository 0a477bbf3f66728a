"""Guests that are lost: a script in place of QEMU behaves as each test needs."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from vfiotool.errors import GuestLostError, UnsupportedError
from vfiotool.lab import guest, initramfs, machines
from vfiotool.lab.kernels import Kernel

# The script records each start, writes to the console like a guest, and acts as the agent on the port.
QEMU = """#!{python}
import json, os, re, sys
sys.path.insert(0, {root!r})
if "help" in sys.argv:
    sys.exit()
with open({starts!r}, "a") as file:
    file.write("started\\n")
from vfiotool.lab import wire
arguments = " ".join(sys.argv)
with open(re.search("path=(/proc/self/fd/[0-9]+)", arguments)[1], "w") as console:
    console.write("Kernel panic - not syncing: by the test\\r\\n")
fd = int(re.search("id=port,fd=([0-9]+)", arguments)[1])
channel = wire.Channel(fd)
os.set_blocking(fd, True)
{script}
"""
READY = """
channel.send(wire.READY, json.dumps({"kernel": 1, "root": 2, "agent": 3, "devices": 4}).encode())
channel.flush()
while not (frames := channel.receive()):
    pass
"""
HANG = "import signal; signal.pause()"
EXIT = """
assert json.loads(frames[0][1])["argv"] == ["command"]
channel.send(wire.EXIT, wire.STATUS.pack(42))
channel.flush()
channel.receive()
"""


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with a line for each start of QEMU. The initramfs is replaced, too."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(initramfs, "build", lambda *_: b"initramfs")
    return tmp_path / "starts"


def install(starts: Path, script: str) -> None:
    root = str(Path(guest.__file__).parents[2])
    program = starts.parent / "qemu-system-x86_64"
    program.write_text(QEMU.format(python=sys.executable, root=root, starts=str(starts), script=script))
    program.chmod(0o755)


def config(timeout: float | None = None, machine: str = "none") -> guest.GuestConfig:
    kernel = Kernel("test", "1.0", "/none", "/nonexistent")
    return guest.GuestConfig(("command",), kernel, machines.get(machine), timeout=timeout)


def open_memory_files() -> list[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.lexists(link) and "memfd" in os.readlink(link)]


def test_run_returns_the_status_of_the_command(starts: Path) -> None:
    install(starts, READY + EXIT)
    times = guest.Times()
    assert guest.run(config(), times) == 42
    assert starts.read_text() == "started\n"
    assert times.phases == {"kernel": 1, "root": 2, "agent": 3, "devices": 4}
    assert open_memory_files() == []


def test_a_guest_lost_before_its_command_is_started_once_more(
    starts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(starts, "")
    with pytest.raises(GuestLostError, match="it stopped") as lost:
        guest.run(config(), guest.Times())
    assert starts.read_text() == "started\n" * 2
    assert "Kernel panic - not syncing: by the test" in lost.value.console
    assert lost.value.exit_status == 125
    assert "starting a new guest" in capsys.readouterr().err
    assert open_memory_files() == []


def test_a_command_that_may_have_run_is_not_started_again(starts: Path) -> None:
    install(starts, READY)
    with pytest.raises(GuestLostError, match="it stopped"):
        guest.run(config(), guest.Times())
    assert starts.read_text() == "started\n"


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.kill(os.getpid(), 6)", "QEMU was killed by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "QEMU was killed by SIGKILL"),
        ("sys.exit(3)", "QEMU exited with status 3"),
    ],
)
def test_the_error_has_the_exit_and_the_messages_of_qemu(starts: Path, end: str, why: str) -> None:
    console = (
        'print("line\\n" * 100, file=open(re.search("path=(/proc/self/fd/[0-9]+)", arguments)[1], "a"))\n'
    )
    install(starts, READY + console + 'print("no such address", flush=True)\n' + end)
    with pytest.raises(GuestLostError, match=why) as lost:
        guest.run(config(), guest.Times())
    assert lost.value.console.startswith("no such address\n")


def test_a_command_over_its_time_loses_the_guest(starts: Path) -> None:
    install(starts, READY + HANG)
    with pytest.raises(GuestLostError, match=r"longer than 0\.1 seconds"):
        guest.run(config(timeout=0.1), guest.Times())
    assert starts.read_text() == "started\n"


def test_silence_loses_the_guest(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "SILENCE_SECONDS", 0.1)
    install(starts, READY + HANG)
    with pytest.raises(GuestLostError, match="no heartbeat"):
        guest.run(config(), guest.Times())


def test_a_start_that_takes_too_long_loses_the_guest(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "BOOT_SECONDS", 0.1)
    install(starts, HANG)
    with pytest.raises(GuestLostError, match="did not start its command"):
        guest.run(config(), guest.Times())
    assert starts.read_text() == "started\n" * 2


def test_a_machine_whose_driver_the_kernel_lacks_is_refused(starts: Path) -> None:
    install(starts, "")
    with pytest.raises(UnsupportedError, match="no virtio_iommu driver"):
        guest.run(config(machine="virtio-iommu"), guest.Times())
    assert not starts.exists()


def test_a_crash_report_has_the_cause_and_the_lines_around_it() -> None:
    report = ["[ 1.0] BUG: unable to handle page fault", *(f"frame {n}" for n in range(50))]
    cause, shown = guest.crash_report("\n".join([*("before",) * 100, *report]))
    assert cause == "BUG: unable to handle page fault"
    assert shown.splitlines() == [*("before",) * 5, *report]


def test_without_a_crash_the_report_has_the_last_lines() -> None:
    lines = [f"line {n}" for n in range(100)]
    assert guest.crash_report("\n".join(lines)) == ("", "\n".join(lines[-40:]))
    assert guest.crash_report("") == ("", "")


def test_the_environment_leaves_out_the_session_of_the_host() -> None:
    caller = {"PATH": "/opt/bin", "HOME": "/root", "DISPLAY": ":0", "SSH_AUTH_SOCK": "/x", "TERM": "vt100"}
    got = guest.environment(config(), caller)
    path = got.pop("PATH").split(":")
    assert path[:2] == [os.path.dirname(sys.executable), "/opt/bin"]
    assert "/usr/sbin" in path
    assert got == {
        "HOME": "/root",
        "TERM": "vt100",
        "VFIOTOOL_LAB_KERNEL": "test",
        "VFIOTOOL_LAB_MACHINE": "none",
    }


def test_init_has_valid_shell_syntax() -> None:
    script = Path(initramfs.__file__).with_name("init.sh")
    assert stat.S_ISREG(script.stat().st_mode)
    assert os.system(f"sh -n {script}") == 0  # noqa: S605 - a fixed path
