"""The open file of a device: all requests to the kernel go through it, and it releases the device."""

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
    """An object that uses an open device and must stop when the device is closed or released."""

    def revoke(self, reason: str) -> None:
        """Stop using the device: it was closed or released, for this reason."""


class DeviceFile(Protocol):
    """The file behind a ``Device``: the kernel's, or a fake of ``vfiotool.testing``.

    Offsets are those of the file: ``RegionInfo.offset`` plus the offset in the region.
    """

    name: str

    @property
    def closed(self) -> bool:
        """Return True if the device was closed or released."""

    @property
    def gone(self) -> int:
        """An eventfd that is readable once the device is closed or released; waiting threads poll it too."""

    def fileno(self) -> int:
        """Return the file descriptor. Raises ClosedError once the device is closed or released."""

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        """Call an ioctl, which may write its reply into ``data``. Raises KernelError, ClosedError."""

    def pread(self, size: int, offset: int) -> bytes:
        """Read exactly ``size`` bytes. Raises KernelError (EIO: there were fewer), ClosedError."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all bytes. Raises KernelError, ClosedError."""

    def map(self, offset: int, size: int, *, write: bool) -> Mmio:
        """Map whole pages into this process. Raises KernelError, ClosedError."""

    def on_close(self, user: Revocable) -> None:
        """Call ``user.revoke`` once the device is closed or released. Raises ClosedError.

        ``user`` is held weakly.
        """

    def set_asleep(self, asleep: bool, reason: tuple[str, str] = LOW_POWER) -> None:
        """Block accesses to mapped registers while the device is off, or allow them again.

        Accesses are allowed again when no reason is left. The second part of a reason is a hint. Raises
        KernelError.
        """

    def revoke(self, reason: str) -> None:
        """Release the device to the kernel while other threads use it; they get ClosedError."""

    def close(self) -> None:
        """Release the device; calls after the first do nothing."""


class KernelDeviceFile(Handle):
    """A device's file descriptor, from its group or its cdev.

    Threads may share it. Any thread may ``revoke()`` it at any time: system calls that run at that moment
    end normally, running accesses to mapped registers reach plain memory, and later uses raise ClosedError.
    """

    def __init__(self, fd: int, name: str, let_go: Callable[[], None] | None = None) -> None:
        """Own a device's descriptor. ``let_go`` is called after the release, to free the device's group."""
        super().__init__(fd, name)
        self._let_go = let_go
        self._revoked = False
        self._revoking = threading.Lock()
        self._windows = Windows()
        self._users: weakref.WeakSet[Revocable] = weakref.WeakSet()
        self.gone = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def closed(self) -> bool:
        """Return True if the device was closed or released."""
        return self._fd < 0 or self._revoked

    def fileno(self) -> int:
        """Return the file descriptor.

        Raises:
            ClosedError: the device is closed or was released; the hint says why.
        """
        if self._revoked:
            raise ClosedError(f"{self.name} was released", hint=self._why_closed)
        return super().fileno()

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        """Call an ioctl of the device; the kernel may write its reply into ``data``.

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
            KernelError: the kernel's errno; EIO if it reads fewer bytes.
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
            KernelError: the kernel's errno; EIO if it writes fewer bytes.
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
        """Call ``user.revoke(reason)``, in any thread, once the device is closed or released.

        ``user`` is held weakly.

        Raises:
            ClosedError: as for ``fileno``.
        """
        with self._revoking:
            self.fileno()
            self._users.add(user)

    def set_asleep(self, asleep: bool, reason: tuple[str, str] = LOW_POWER) -> None:
        """Block accesses to mapped registers while the device is off, or allow them again.

        The kernel would end the process with SIGBUS. A blocked access raises AccessError instead, with the
        reason as its message and hint. Accesses are allowed again when no reason is left.

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
        """Release the device to the kernel, from any thread. ``reason`` is the hint of later ClosedErrors.

        The descriptor's number stays in use until ``close()``: a system call that another thread is about to
        make then cannot reach a file that was opened in the meantime.
        """
        with self._revoking:
            if self.closed:
                return
            self._why_closed = reason
            self._revoked = True
            self._end_use()
            # An eventfd refuses all calls meant for a device, and dup2 needs no further descriptor.
            os.dup2(self.gone, self._fd, inheritable=False)
        self._release()

    def close(self) -> None:
        """Release the device and close the descriptor; calls after the first do nothing."""
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
        self._revoking = threading.Lock()  # another thread of the parent may have held the lock
        self._windows.revoke(self._why_closed)
        os.close(self.gone)
        self.gone = -1

    def _failed(self, code: int | None, operation: str) -> Exception:
        if self._revoked:  # the error came from the eventfd, not from the device
            return ClosedError(f"{self.name} was released", hint=self._why_closed)
        return KernelError(code or errno.EIO, operation, self.name)
