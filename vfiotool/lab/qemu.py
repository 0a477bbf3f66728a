"""QEMU for the lab: its program, its device models, its start, and the choice of KVM or TCG."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfiotool.errors import LabError
from vfiotool.lab import cache, initramfs

if TYPE_CHECKING:
    from vfiotool.lab.kernels import Kernel

_PROGRAM = "qemu-system-x86_64"
_PR_SET_PDEATHSIG = 1
_PROBE_SECONDS = 10
_PROBE_ANSWER = b"vfiotool-kvm-boots"
_PROBE_INIT = b"#!/bin/busybox sh\necho %s\nexec /bin/busybox poweroff -f\n" % _PROBE_ANSWER

BARE = ("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot")
# With erms and fsrm, the kernel clears and copies memory byte by byte, which is slow under emulation.
TCG = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off,erms=off,fsrm=off")
KVM = ("-accel", "kvm", "-cpu", "host")


class MemoryFile:
    """A file without a name (memfd), which leaves nothing behind; QEMU opens it by ``path``."""

    def __init__(self, name: str, data: bytes = b"", size: int = 0) -> None:
        self.fd = os.memfd_create(name)
        self.path = f"/proc/self/fd/{self.fd}"  # QEMU inherits the descriptor with the same number
        with open(self.fd, "wb", closefd=False) as file:
            file.write(data)
        if size:
            os.ftruncate(self.fd, size)

    def contents(self) -> bytes:
        """Return the current content of the file."""
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)

    def close(self) -> None:
        """Close the file. Any number of times."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def program() -> str:
    """Return the path of QEMU; LabError if it is not installed."""
    path = shutil.which(_PROGRAM)
    if path is None:
        raise LabError(f"{_PROGRAM} is not installed", hint="apt install qemu-system-x86")
    return path


def models() -> frozenset[str]:
    """Return the names of the device models of this QEMU; LabError if QEMU does not run."""
    help_ = subprocess.run([program(), "-device", "help"], capture_output=True, text=True, check=False)
    if help_.returncode:
        raise LabError(
            f"{program()} does not run: {' '.join(help_.stderr.split())[:200]}",
            hint="reinstall qemu-system-x86, with all its packages of the same version",
        )
    return frozenset(line.split('"')[1] for line in help_.stdout.splitlines() if line.startswith('name "'))


def start(arguments: Sequence[str], fds: Sequence[int], stderr: int) -> subprocess.Popen[bytes]:
    """Start QEMU with these descriptors; the kernel kills it when this process exits."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        [program(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        pass_fds=fds,
        start_new_session=True,  # QEMU must not get the terminal's Ctrl-C
        preexec_fn=die_with_parent,
    )


def accelerator(kernel: Kernel) -> tuple[str, ...]:
    """Return QEMU's arguments for the fastest accelerator that works on this machine.

    ``/dev/kvm`` can exist without being able to boot a guest, so a test guest is booted. The result is
    cached until this machine reboots or QEMU is replaced.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        key = [file.read().strip(), os.stat(program()).st_mtime_ns]
    path = cache.directory("kvm.json")
    with cache.locked("kvm", lambda: None):
        known = cache.read_json(path)
        if known is None or known.get("key") != key:
            known = {"key": key, "boots": kvm_boots(kernel)}
            cache.write_json(path, known)
    return KVM if known["boots"] else TCG


def kvm_boots(kernel: Kernel) -> bool:
    """Return True if a guest that only powers off ends under KVM in time."""
    console = MemoryFile("console")
    initrd = MemoryFile("initrd", initramfs.image(_PROBE_INIT))
    arguments = [*BARE, *KVM, "-m", "512M", "-kernel", kernel.image, "-initrd", initrd.path]
    arguments += ["-append", "console=ttyS0 panic=-1", "-serial", f"file:{console.path}"]
    qemu = start(arguments, (initrd.fd, console.fd), subprocess.DEVNULL)
    try:
        qemu.wait(_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        qemu.kill()
        qemu.wait()
    boots = _PROBE_ANSWER in console.contents()
    console.close()
    initrd.close()
    return boots
