"""Eventfds that the kernel signals; threads, select loops and asyncio may wait for them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING

from vfiotool._shim import lib
from vfiotool.errors import ClosedError, IrqTimeoutError, KernelError
from vfiotool.vfio.handle import Handle, checked

if TYPE_CHECKING:
    import asyncio

    from vfiotool.vfio.device_file import DeviceFile

_wait = lib.vt_eventfd_wait
_INTERRUPTED = -errno.EINTR
_FOREVER = -1
_LONGEST = 1 << 32  # seconds; a deadline in nanoseconds must fit in 63 bits


class EventFd(Handle):
    """Counts events of a device; ``name`` says which. Each event is counted once, and none is lost.

    Any number of threads and asyncio tasks may wait at once: each event is returned to one of them. If
    another thread calls ``close()``, or the device ends, all of them are woken with ClosedError.
    """

    _ended = False
    _closing = False
    _hint_if_silent = ""

    def __init__(self, file: DeviceFile, name: str) -> None:
        """Create an eventfd that ends with an open device.

        Raises:
            ClosedError: the device was closed or released.
            KernelError: EMFILE, too many files are open.
        """
        self._lock = threading.RLock()  # a signal handler may close the eventfd that its own thread waits for
        self._inside = 0  # threads in a call with the descriptor: it must stay open for them
        super().__init__(_new_eventfd(name), name)
        try:
            file.on_close(self)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Return True if the eventfd or its device was closed."""
        return self._ended or super().closed

    def fileno(self) -> int:
        """Return the eventfd, which is non-blocking and readable after an event, for ``select``.

        It is also readable once the device has ended: ``read()`` then raises ClosedError. The caller must not
        ``close()`` the eventfd while a ``select`` watches its descriptor.

        Raises:
            ClosedError: the eventfd or its device was closed.
        """
        if self._ended:
            raise self._closed_error()
        return super().fileno()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for an event, and return the number of events since the last call, at least 1.

        ``timeout`` is in seconds; None waits without a limit, 0 does not wait. Signal handlers run meanwhile.

        Raises:
            IrqTimeoutError: there was no event in time.
            ClosedError: the eventfd or its device was closed, before or during the wait.
        """
        count = self._take(_FOREVER if timeout is None else _deadline(timeout))
        if not count:
            raise self._timed_out(timeout)
        return count

    def read(self) -> int:
        """Return the number of events since the last call, 0 for none; does not wait.

        Raises:
            ClosedError: the eventfd or its device was closed.
        """
        return self._take(0)

    async def wait_async(self, timeout: float | None = None) -> int:
        """Wait like ``wait()``, in an asyncio task; a cancelled task consumes no event.

        Raises:
            IrqTimeoutError: there was no event in time.
            ClosedError: the eventfd or its device was closed, before or during the wait.
        """
        deadline = _FOREVER if timeout is None else _deadline(timeout)
        while not (count := self.read()):
            if deadline != _FOREVER and time.monotonic_ns() >= deadline:
                raise self._timed_out(timeout)
            await self._readable(deadline)
        return count

    def revoke(self, reason: str) -> None:
        """End the eventfd, from any thread: waiting and later callers get a ClosedError with this reason.

        The descriptor stays open, and readable from now on, for those that watch it.
        """
        with self._lock:
            self._end(reason)

    def close(self) -> None:
        """End the eventfd and close its descriptor; calls after the first do nothing."""
        with self._lock:
            self._end(self._why_closed)
            self._closing = True
            self._close_if_unused()

    def _end(self, reason: str) -> None:
        if not self.closed:
            self._ended = True
            self._why_closed = reason
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the counter is full, so the eventfd is readable
            os.eventfd_write(self._fd, 1)

    def _take(self, deadline: int) -> int:
        """Return the count, or 0 if the deadline has passed. The time spent here is interrupt latency."""
        with self._lock:
            fd = self._fd
            if self._ended or fd < 0:
                raise self._closed_error()
            self._inside += 1
        try:
            result = _wait(fd, deadline)
            while result == _INTERRUPTED:  # Python has run its signal handlers meanwhile
                result = _wait(fd, deadline)
        finally:
            with self._lock:
                self._inside -= 1
                if self._ended:
                    self._wake()  # this thread may have consumed the count that was to wake all
                    self._close_if_unused()
        if self._ended:
            raise self._closed_error()
        if result >= 0:
            return result
        return 0 if result == -errno.ETIMEDOUT else checked(result, "read", self.name)

    def _close_if_unused(self) -> None:
        if self._closing and not self._inside:
            super().close()

    async def _readable(self, deadline: int) -> None:
        """Return when the eventfd may be readable, or the deadline has passed."""
        import asyncio

        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        fd = self._duplicate()  # a loop has one reader per descriptor, but several tasks may wait
        try:
            loop.add_reader(fd, _set, woken)
            timeout = None if deadline == _FOREVER else max(deadline - time.monotonic_ns(), 0) / 1e9
            await asyncio.wait([woken], timeout=timeout)
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def _duplicate(self) -> int:
        with self._lock:
            try:
                return os.dup(self.fileno())
            except OSError as error:
                raise KernelError(error.errno or errno.EIO, "eventfd", self.name) from None

    def _close_in_child(self) -> None:
        self._lock = threading.RLock()  # another thread of the parent may have held the lock
        super()._close_in_child()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name} is closed", hint=self._why_closed)

    def _timed_out(self, timeout: float | None) -> IrqTimeoutError:
        return IrqTimeoutError(f"{self.name} was not signalled within {timeout} s", hint=self._hint_if_silent)


def _new_eventfd(name: str) -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, "eventfd", name) from None


def _deadline(timeout: float) -> int:
    """Return the end of a wait on the monotonic clock, in nanoseconds."""
    return time.monotonic_ns() + int(max(0, min(timeout, _LONGEST)) * 1e9)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
