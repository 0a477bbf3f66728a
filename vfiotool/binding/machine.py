"""The operations that change a machine: bounded writes to sysfs, access to nodes, module loading."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Collection
from typing import Protocol

from vfiotool.binding import ownership
from vfiotool.binding.ownership import Owner
from vfiotool.binding.state_dir import unusable
from vfiotool.errors import KernelError, UnsupportedError, VfioToolError
from vfiotool.events.udev import DeviceEvents
from vfiotool.host.device_state import NodeAccess
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.pending_unbinds import pending_dir, pending_writer, process_start
from vfiotool.host.tree import Tree
from vfiotool.util import kernel_files
from vfiotool.util.child import start_child

_TICK = 1.0
_RESULT = struct.Struct("=i")
GO = b"\n"
"""Tells the writer process to begin its write."""


def no_report() -> None:
    """Report nothing while a write waits."""


class UeventListener(Protocol):
    """The uevents of PCI devices since this object was created: see ``events.udev.DeviceEvents``."""

    out_of_sight: str

    def missing(
        self, expected: Collection[tuple[str, str]], timeout: float
    ) -> frozenset[tuple[str, str]]: ...

    def unprocessed(
        self, expected: Collection[tuple[str, str]], timeout: float
    ) -> frozenset[tuple[str, str]]: ...

    def close(self) -> None: ...


class MachineControl(Protocol):
    """The parts of a machine, real or fake, that binding changes."""

    tree: Tree

    def write(
        self, path: str, value: str, *, address: str, timeout: float, waiting: Callable[[], None] = no_report
    ) -> None:
        """Write to sysfs. ``waiting`` is called about once a second until the write returns.

        Raises:
            KernelError: the kernel refused the write.
            TimeoutError: the write did not return in time; it is pending, and may still complete.
        """

    def await_writer(self, address: str, timeout: float) -> bool:
        """Wait for a pending write to a device to return; return True if none is pending any more."""

    def set_access(self, node: str, access: NodeAccess) -> None:
        """Set the owner, group and mode of a node.

        Raises:
            KernelError: the node cannot be opened or changed.
        """

    def grant(self, address: str, owner: Owner) -> None:
        """Give a device's nodes to an owner, as ``ownership.grant`` does."""

    def revoke(self, address: str) -> None:
        """Revoke what ``grant`` gave; no effect if nothing was granted."""

    def load_module(self, name: str) -> None:
        """Load a driver's module.

        Raises:
            UnsupportedError: this kernel has no VFIO.
            VfioToolError: the module cannot be loaded.
        """

    def events(self) -> UeventListener:
        """Start to receive uevents."""


class LiveMachine:
    """The running machine."""

    def __init__(self, state_dir: str) -> None:
        self.tree = Tree()
        self._state_dir = state_dir

    def events(self) -> UeventListener:
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
        raise VfioToolError(cause, hint="check the driver's name, and that this kernel has that driver")

    def write(
        self, path: str, value: str, *, address: str, timeout: float, waiting: Callable[[], None] = no_report
    ) -> None:
        # Never signal the writer. SIGTERM only makes an unbind that waits for the device's holder
        # uninterruptible, and SIGKILL has no effect until the holder releases the device.
        pid, fd = start_child(lambda parent: _write_on_go(parent, path, value))
        try:
            self._note(address, pid)
            os.write(fd, GO)
            code = _await_result(fd, timeout, waiting)
        finally:
            os.close(fd)
        if code is None:
            raise TimeoutError(path)
        os.waitpid(pid, 0)
        self._remove_note(address)
        if code:
            raise KernelError(code, "write", path)

    def await_writer(self, address: str, timeout: float) -> bool:
        pid = pending_writer(self.tree, self._state_dir, address)
        if pid is not None and not _await_end(pid, timeout):
            return False
        self._remove_note(address)
        return True

    def set_access(self, node: str, access: NodeAccess) -> None:
        try:
            fd = os.open(node, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(error.errno or -1, "open", node) from error
        try:
            path = f"/proc/self/fd/{fd}"  # the opened file, even if the path names another one by now
            os.chown(path, access.uid, access.gid)
            os.chmod(path, access.mode)
        except OSError as error:
            raise KernelError(error.errno or -1, "chown", node) from error
        finally:
            os.close(fd)

    def grant(self, address: str, owner: Owner) -> None:
        ownership.grant(self.tree, address, owner)

    def revoke(self, address: str) -> None:
        ownership.revoke(self.tree, address)

    def _note(self, address: str, pid: int) -> None:
        """Note a write before it begins: the kernel does not show a write that does not return."""
        started = process_start(self.tree, pid)
        path = f"{pending_dir(self._state_dir)}/{address}"
        with (
            unusable(self._state_dir),
            contextlib.suppress(FileNotFoundError),
            open(path, "w", encoding="ascii") as file,
        ):
            file.write(f"{pid} {started}\n")

    def _remove_note(self, address: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{pending_dir(self._state_dir)}/{address}")


def _write_on_go(parent: int, path: str, value: str) -> None:
    """Write, unless the parent is killed before it has noted the write."""
    if os.read(parent, len(GO)) == GO:
        os.write(parent, _RESULT.pack(kernel_files.write(path, value)))


def _await_result(fd: int, timeout: float, waiting: Callable[[], None]) -> int | None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout
    while not poll.poll(max(0.0, min(_TICK, deadline - time.monotonic())) * 1000):
        if time.monotonic() >= deadline:
            return None
        waiting()
    answer = os.read(fd, _RESULT.size)
    code: int = _RESULT.unpack(answer)[0] if len(answer) == _RESULT.size else -1
    return code


def _await_end(pid: int, timeout: float) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(fd)
