"""QEMU for the lab: which one is there, what it can do, and how it is started and ended."""

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
# With erms and fsrm the kernel clears and copies memory by single bytes, which emulation does not merge.
TCG = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off,erms=off,fsrm=off")
KVM = ("-accel", "kvm", "-cpu", "host")


class MemoryFile:
    """A file that has no name, so that nothing can be left behind; QEMU opens it by ``path``."""

    def __init__(self, name: str, data: bytes = b"", size: int = 0) -> None:
        self.fd = os.memfd_create(name)
        self.path = f"/proc/self/fd/{self.fd}"  # QEMU inherits the descriptor under its number
        with open(self.fd, "wb", closefd=False) as file:
            file.write(data)
        if size:
            os.ftruncate(self.fd, size)

    def contents(self) -> bytes:
        """All that is in the file now."""
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)

    def close(self) -> None:
        """Let the file go; any number of times."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def program() -> str:
    """The path of QEMU; LabError where it is not installed."""
    path = shutil.which(_PROGRAM)
    if path is None:
        raise LabError(f"{_PROGRAM} is not installed", hint="apt install qemu-system-x86")
    return path


def models() -> frozenset[str]:
    """The names of the device models that this QEMU knows; LabError where it cannot say."""
    help_ = subprocess.run([program(), "-device", "help"], capture_output=True, text=True, check=False)
    if help_.returncode:
        raise LabError(
            f"{program()} does not run: {' '.join(help_.stderr.split())[:200]}",
            hint="install qemu-system-x86 again, with all its packages of one version",
        )
    return frozenset(line.split('"')[1] for line in help_.stdout.splitlines() if line.startswith('name "'))


def start(arguments: Sequence[str], fds: Sequence[int], stderr: int) -> subprocess.Popen[bytes]:
    """Start QEMU with these descriptors; the kernel kills it when this process ends."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        [program(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        pass_fds=fds,
        start_new_session=True,  # a terminal's Ctrl-C is ours to handle
        preexec_fn=die_with_parent,
    )


def accelerator(kernel: Kernel) -> tuple[str, ...]:
    """QEMU's arguments for the fastest processor that boots a guest here.

    ``/dev/kvm`` can exist and still boot nothing, so a guest is booted to know. The answer is cached
    until this machine restarts or gets another QEMU.
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
    """Whether a guest that only powers off does so under KVM, in time."""
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
