"""The open file of a device: what a driver's every request goes through, and how it is given back."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vfiotool.errors import ClosedError, KernelError
from vfiotool.vfio.handle import Handle
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.mmio.windows import LOW_POWER, Windows

if TYPE_CHECKING:
    from vfiotool.vfio.uapi import DeviceIoctl


class Revocable(Protocol):
    """What uses an open device and must know when that ends."""

    def revoke(self, reason: str) -> None:
        """Use it no longer: it was closed or given back, for this reason."""


class DeviceFile(Protocol):
    """What a ``Device`` talks to: the kernel's file, or a fake that ``vfiotool.testing`` makes.

    Offsets are the file's own: those of ``RegionInfo.offset``, and what lies in the region.
    """

    name: str

    @property
    def closed(self) -> bool:
        """Say whether it was closed or given back."""

    @property
    def gone(self) -> int:
        """An eventfd that is readable once it is closed or given back: what waits, waits for it too."""

    def fileno(self) -> int:
        """Return the file descriptor; ClosedError once it is closed or given back."""

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        """Ask; the answer is written into ``data``. KernelError, ClosedError."""

    def pread(self, size: int, offset: int) -> bytes:
        """Read exactly so many bytes. KernelError (EIO: there were fewer), ClosedError."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all bytes. KernelError, ClosedError."""

    def map(self, offset: int, size: int, *, write: bool) -> Mmio:
        """Map whole pages into this process. KernelError, ClosedError."""

    def on_close(self, user: Revocable) -> None:
        """Have ``user.revoke`` called once it is closed or given back; held weakly. ClosedError."""

    def set_asleep(self, asleep: bool, reason: tuple[str, str] = LOW_POWER) -> None:
        """Keep accesses to what is mapped from a device that is off, or let them through. KernelError.

        They come through again when no reason is left; it has a hint as its second part.
        """

    def revoke(self, reason: str) -> None:
        """Give the device back to the kernel while other threads use it; they get ClosedError."""

    def close(self) -> None:
        """Give the device back; calls after the first do nothing."""


class KernelDeviceFile(Handle):
    """A device's file descriptor, from its group or its cdev.

    Threads may share it. Any thread may ``revoke()`` it at any time: system calls that run then end as
    if it had not, accesses to mapped registers reach plain memory, and what comes after is ClosedError.
    """

    def __init__(self, fd: int, name: str, let_go: Callable[[], None] | None = None) -> None:
        """Own a device's descriptor; ``let_go`` frees its group, or what else the device needed."""
        super().__init__(fd, name)
        self._let_go = let_go
        self._revoked = False
        self._revoking = threading.Lock()
        self._windows = Windows()
        self._users: weakref.WeakSet[Revocable] = weakref.WeakSet()
        self.gone = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def closed(self) -> bool:
        """Say whether it was closed or given back."""
        return self._fd < 0 or self._revoked

    def fileno(self) -> int:
        """Return the file descriptor.

        Raises:
            ClosedError: it is closed, or was given back; the hint says why.
        """
        if self._revoked:
            raise ClosedError(f"{self.name} was given back", hint=self._why_closed)
        return super().fileno()

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        """Ask the device; the kernel writes its answer into ``data``.

        Raises:
            KernelError: the kernel's errno.
            ClosedError: as for ``fileno``.
        """
        try:
            result: int = fcntl.ioctl(self.fileno(), int(request), data)
        except OSError as error:
            raise self._failed(error.errno, request.name) from None
        return result

    def pread(self, size: int, offset: int) -> bytes:
        """Read ``size`` bytes of a region.

        Raises:
            KernelError: the kernel's errno; EIO where it reads fewer bytes.
            ClosedError: as for ``fileno``.
        """
        try:
            data = os.pread(self.fileno(), size, offset)
        except OSError as error:
            raise self._failed(error.errno, "pread") from None
        if len(data) != size:
            raise self._failed(errno.EIO, "pread")
        return data

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write bytes to a region.

        Raises:
            KernelError: the kernel's errno; EIO where it takes fewer bytes.
            ClosedError: as for ``fileno``.
        """
        try:
            written = os.pwrite(self.fileno(), data, offset)
        except OSError as error:
            raise self._failed(error.errno, "pwrite") from None
        if written != len(data):
            raise self._failed(errno.EIO, "pwrite")

    def map(self, offset: int, size: int, *, write: bool) -> Mmio:
        """Map whole pages of a region into this process.

        Raises:
            KernelError: the kernel's errno.
            ClosedError: as for ``fileno``.
        """
        with self._revoking:
            window = Mmio.of_file(self.fileno(), offset, size, write=write, name=self.name)
            self._windows.add(window)
            return window

    def on_close(self, user: Revocable) -> None:
        """Have ``user.revoke(reason)`` called, in any thread, once it is closed or given back; held weakly.

        Raises:
            ClosedError: as for ``fileno``.
        """
        with self._revoking:
            self.fileno()
            self._users.add(user)

    def set_asleep(self, asleep: bool, reason: tuple[str, str] = LOW_POWER) -> None:
        """Keep accesses to mapped registers from a device that is off, or let them through again.

        The kernel would end the process with SIGBUS; now they are AccessErrors, of which the reason is the
        message and the hint. They come through again when no reason is left.

        Raises:
            KernelError: the kernel's errno from mmap(2).
            ClosedError: as for ``fileno``.
        """
        with self._revoking:
            fd = self.fileno()
            if asleep:
                self._windows.sleep(*reason)
            else:
                self._windows.wake(reason[0], fd)

    def revoke(self, reason: str) -> None:
        """Give the device back to the kernel, from any thread; ``reason`` is what the others are told.

        The descriptor's number stays taken until ``close()``, so that a system call which another
        thread is about to make cannot reach a file that was opened meanwhile.
        """
        with self._revoking:
            if self.closed:
                return
            self._why_closed = reason
            self._revoked = True
            self._end_use()
            # An eventfd refuses whatever a device is asked; and no further descriptor is needed for it.
            os.dup2(self.gone, self._fd, inheritable=False)
        self._release()

    def close(self) -> None:
        """Give the device back and close the descriptor; calls after the first do nothing."""
        if self._fd < 0:
            return
        with self._revoking:
            if not self._revoked:
                self._end_use()
            super().close()
            gone, self.gone = self.gone, -1
            os.close(gone)
        self._release()

    def _end_use(self) -> None:
        os.eventfd_write(self.gone, 1)
        self._windows.revoke(self._why_closed)
        for user in tuple(self._users):
            user.revoke(self._why_closed)

    def _release(self) -> None:
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()

    def _close_in_child(self) -> None:
        super()._close_in_child()
        self._let_go = None
        self._revoking = threading.Lock()  # another thread of the parent may have held it
        self._windows.revoke(self._why_closed)
        os.close(self.gone)
        self.gone = -1

    def _failed(self, code: int | None, operation: str) -> Exception:
        if self._revoked:  # the device did not answer
            return ClosedError(f"{self.name} was given back", hint=self._why_closed)
        return KernelError(code or errno.EIO, operation, self.name)
