"""For tests in a guest: its devices by name, runs of vfiotool, and raw access to sysfs."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.support.cli_result import Result
from vfiotool import cli

KERNEL = os.environ.get("VFIOTOOL_LAB_KERNEL", "")
MACHINE = os.environ.get("VFIOTOOL_LAB_MACHINE", "")

# A second emulated processor costs a guest beside another 15 % of its time. Now and then QEMU 7.2 loses a
# timer of it ("rcu_preempt kthread timer wakeup didn't happen", and the guest stands still), or has it
# stumble over code that the kernel patches ("Oops: int3").
ONE_CPU = ("--cpus", "1")

PROGRAM = os.path.join(os.path.dirname(sys.executable), "vfiotool")

EDU = "0000:00:10.0"
TESTDEV = "0000:00:11.0"
E1000E = "0000:00:12.0"
NVME = "0000:00:13.0"
SUBSYSTEM_NVME = "0000:01:00.0"
BRIDGE = "0000:02:00.0"
E1000_PAIR = ("0000:03:01.0", "0000:03:02.0")
OTHER_NVME = "0000:06:00.0"
OTHER_E1000E = "0000:07:00.0"
IGB = "0000:08:00.0"

RELEASE = tuple(int(number) for number in os.uname().release.split(".")[:2])

BUS = "/sys/bus/pci"
VFIO_BIND = f"{BUS}/drivers/vfio-pci/bind"
GROUPS = "/sys/kernel/iommu_groups"

# By the machine's name, not by what it shows: an IOMMU that fails to start must not skip tests.
needs_iommu = pytest.mark.skipif(MACHINE == "none", reason="machine 'none' has no IOMMU")

PUT_HERE = "by a test"
"""Ends a line that a test puts into the kernel's log."""

_SERIOUS = re.compile(r"WARNING:|BUG:|Oops|Call Trace|general protection|refcount_t|INFO: task .* blocked")
_POLL_SECONDS = 0.02
_MOST_SECONDS = 2
_MOST_LOOKS = 8
_USUAL_START = 0.2
"""Seconds that a bare start of Python takes in a guest on an idle host; a busy host slows all alike."""


def vfiotool(*args: str) -> Result:
    """Run a vfiotool command line in this process: a start of Python costs a second under emulation."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = cli.run(list(args))
    return Result(status, stdout.getvalue(), stderr.getvalue())


def done(*args: str) -> Any:
    """Run a vfiotool command line that must succeed, and return its document."""
    result = vfiotool(*args, "--json")
    assert result.status == 0, result.stderr
    return result.document


def vfiotool_as_nobody(*args: str) -> Result:
    """Run vfiotool in a process of its own, without any rights."""
    let_everyone_reach(PROGRAM)
    let_everyone_reach(cli.__file__)
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs"]
    return command(*nobody, PROGRAM, *args)


def let_everyone_reach(file: str) -> None:
    """Let other users pass the folders above a file: root's home may hold the environment or the checkout.

    The guest's root file system is its own copy.
    """
    folder = os.path.dirname(os.path.abspath(file))
    while folder != "/":
        mode = os.stat(folder).st_mode
        if mode & 0o005 != 0o005:
            os.chmod(folder, mode & 0o7777 | 0o005)
        folder = os.path.dirname(folder)


def command(*argv: str) -> Result:
    """Run a program to its end."""
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    return Result(ended.returncode, ended.stdout, ended.stderr)


def output(*argv: str) -> str:
    """Return what a program that must succeed prints."""
    result = command(*argv)
    assert result.status == 0, result
    return result.stdout


def seconds(*argv: str) -> float:
    """Run a program that must succeed, and return how long it takes."""
    begun = time.monotonic()
    output(*argv)
    return time.monotonic() - begun


def prompt_looks(*verbs: tuple[str, ...]) -> list[Result]:
    """Run reading verbs that must each answer within two seconds, or what they are on this busy a host."""
    return [_prompt_look(*verb) for verb in verbs]


def _prompt_look(*verb: str) -> Result:
    """Look again and again: another guest may have the processors now; what really waits, waits each time."""
    took: list[tuple[float, float]] = []
    while len(took) < _MOST_LOOKS:
        start = seconds(sys.executable, "-c", "pass")
        limit = _MOST_SECONDS * max(1, start / _USUAL_START)
        begun = time.monotonic()
        result = command(PROGRAM, *verb, "--json")
        took.append((time.monotonic() - begun, limit))
        assert result.status == 0, result
        if took[-1][0] < limit:
            return result
    raise AssertionError(f"{verb} took longer than it may, in seconds: {took}")


def listing() -> dict[str, dict[str, Any]]:
    """Return the devices of ``vfiotool list --json``, by address."""
    return {device["address"]: device for device in done("list")["devices"]}


def path(address: str, name: str = "") -> str:
    """Return a device's folder in sysfs, or the path of one of its attributes."""
    return f"{BUS}/devices/{address}/{name}".rstrip("/")


def write(file: str, content: str) -> None:
    """Write to sysfs in one system call, an empty content too; OSError as the kernel has it."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)


def read(file: str) -> str | None:
    """Return an attribute's text without its newline, ``None`` where there is no such file."""
    try:
        with open(file, encoding="utf-8") as attribute:
            return attribute.read().removesuffix("\n")
    except FileNotFoundError:
        return None


def link(file: str) -> str | None:
    """Return the last part of a symbolic link's target, ``None`` where there is none."""
    return os.path.basename(os.readlink(file)) if os.path.islink(file) else None


def driver(address: str) -> str | None:
    """Return the driver that a device has, by its link."""
    return link(path(address, "driver"))


def group(address: str) -> int | None:
    """Return the group that a device is in, by its link."""
    number = link(path(address, "iommu_group"))
    return None if number is None else int(number)


def override(address: str) -> str:
    """Return the path of a device's override."""
    return path(address, "driver_override")


def to_vfio(address: str) -> None:
    """Hand a device to vfio-pci, whose module must be there, by hand."""
    write(override(address), "vfio-pci")
    if driver(address) is not None:
        write(path(address, "driver/unbind"), address)
    write(VFIO_BIND, address)


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """The bind in the block fails with this errno; the bind file of 5.10 has one answer for all."""
    with pytest.raises(OSError, match=rf"Errno {code if RELEASE > (5, 10) else errno.ENODEV}\]"):
        yield


def await_(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what the kernel tells no one of; fail with ``what`` where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(_POLL_SECONDS)


def settle() -> None:
    """Wait until udevd has handled all events."""
    await_("udevd is idle", lambda: command("udevadm", "settle", "--timeout=60").status == 0)


def tell_udevd(option: str) -> None:
    """Send a control message several times: udevd ignores one that comes before it asks for the sender."""
    for _ in range(5):
        output("udevadm", "control", option)


def remove(address: str) -> None:
    """Take a device off its bus."""
    write(path(address, "remove"), "1")


def rescan(*addresses: str) -> None:
    """Find removed devices again, and wait until those have the drivers that are theirs."""
    write(f"{BUS}/rescan", "1")
    await_(f"{addresses} are back", lambda: all(os.path.exists(path(address)) for address in addresses))
    settle()


@contextlib.contextmanager
def as_before(*addresses: str) -> Iterator[None]:
    """After the block, give devices back the drivers that they had before, and clear their overrides."""
    former = {address: driver(address) for address in addresses}
    try:
        yield
    finally:
        for address, name in former.items():
            write(path(address, "driver_override"), "\n")
            if driver(address) not in (None, name):
                write(path(address, "driver/unbind"), address)
        for address, name in former.items():
            if driver(address) is None and name is not None:
                write(f"{BUS}/drivers/{name}/bind", address)
        settle()


def kernel_log() -> list[str]:
    """Return the lines of the kernel's log, but for what a test has put there."""
    return [line for line in output("dmesg", "--notime").splitlines() if PUT_HERE not in line]


def kernel_complaints() -> list[str]:
    """Return the lines of the kernel's log that tell of a defect, with the state of its taint."""
    lines = kernel_log()
    return [*filter(_SERIOUS.search, lines), f"tainted {read('/proc/sys/kernel/tainted')}"]


def differences(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields that differ between two listings of the same devices: (before, after) each."""
    return {
        f"{one['address']} {field}": (one[field], other[field])
        for one, other in zip(before, after, strict=True)
        for field in one
        if one[field] != other[field]
    }
