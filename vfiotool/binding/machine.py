"""How this machine is changed: bounded writes to sysfs, and modules loaded."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import struct
import subprocess
from typing import Protocol

from vfiotool.errors import KernelError, UnsupportedError, VfioToolError
from vfiotool.events.udev import DeviceEvents
from vfiotool.host.child import start_child
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.pending import pending_dir, process_start
from vfiotool.host.tree import Tree

_RESULT = struct.Struct("=i")


class Events(Protocol):
    """The bind and unbind events of PCI devices."""

    source: str

    def wait(self, action: str, address: str, timeout: float) -> bool: ...

    def close(self) -> None: ...


class Machine(Protocol):
    """What the binder needs of a machine, be it real or a fake."""

    tree: Tree

    def write(self, path: str, value: str, *, address: str, timeout: float) -> None:
        """Write to sysfs.

        Raises:
            KernelError: the kernel refused it.
            TimeoutError: it did not return in time; it is pending, and may yet be done.
        """

    def load_module(self, name: str) -> None:
        """Load a driver's module.

        Raises:
            UnsupportedError: this kernel has no VFIO.
            VfioToolError: it cannot be loaded.
        """

    def events(self) -> Events:
        """Start to listen."""


class LiveMachine:
    """The running machine."""

    def __init__(self, state_dir: str) -> None:
        self.tree = Tree()
        self._pending = pending_dir(state_dir)

    def events(self) -> Events:
        return DeviceEvents()

    def load_module(self, name: str) -> None:
        modprobe = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if modprobe is None:
            raise VfioToolError("modprobe is not on this machine", hint="install the package kmod")
        result = subprocess.run(
            [modprobe, "--", name], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if not result.returncode:
            return
        cause = f"the module of driver {name} cannot be loaded: {' '.join(result.stderr.split())}"
        if is_vfio_driver(name):
            raise UnsupportedError(cause, hint="use a kernel that has VFIO (CONFIG_VFIO_PCI)")
        raise VfioToolError(cause, hint="check the driver's name, and that this kernel has it")

    def write(self, path: str, value: str, *, address: str, timeout: float) -> None:
        # Nobody may signal the writer: SIGTERM would only make an unbind that waits for whoever
        # holds the device uninterruptible, and SIGKILL does nothing until the release.
        content = value.encode()
        pid, result_fd = start_child(lambda fd: _send(fd, _write(path, content)))
        try:
            code = _await_result(result_fd, timeout)
        except BaseException:
            self._mark_pending(address, pid)
            raise
        finally:
            os.close(result_fd)
        if code is None:
            self._mark_pending(address, pid)
            raise TimeoutError(path)
        os.waitpid(pid, 0)
        if code:
            raise KernelError(code, "write", path)

    def _mark_pending(self, address: str, pid: int) -> None:
        """Leave word of a write that has not returned: nothing else shows it (see host.pending)."""
        with contextlib.suppress(FileNotFoundError):
            started = process_start(self.tree, pid)
            with open(f"{self._pending}/{address}", "w", encoding="ascii") as file:
                file.write(f"{pid} {started}\n")


def _write(path: str, content: bytes) -> int:
    """Write in one system call, as sysfs wants it; return 0 or the errno."""
    try:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, content)
    except OSError as error:
        return error.errno or -1
    return 0


def _send(fd: int, code: int) -> None:
    os.write(fd, _RESULT.pack(code))


def _await_result(fd: int, timeout: float) -> int | None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(timeout * 1000):
        return None
    answer = os.read(fd, _RESULT.size)
    code: int = _RESULT.unpack(answer)[0] if len(answer) == _RESULT.size else -1
    return code
