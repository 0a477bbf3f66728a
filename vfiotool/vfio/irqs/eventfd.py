"""What the kernel tells by an eventfd, counted; threads, select loops and asyncio may wait for it."""

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
    """Counts what happens to a device; ``name`` says what. Each event is counted once, and none is lost.

    Any number of threads and asyncio tasks may wait at once: each event is given to one of them. Whatever
    ends it, ``close()`` in another thread or the end of its device, wakes all of them with ClosedError.
    """

    _ended = False
    _closing = False
    _hint_if_silent = ""

    def __init__(self, file: DeviceFile, name: str) -> None:
        """Make one that ends with an open device.

        Raises:
            ClosedError: the device was closed or given back.
            KernelError: EMFILE, too many files are open.
        """
        self._lock = threading.RLock()  # a signal handler may close what its thread is about to await
        self._inside = 0  # threads in a call with the descriptor, which must stay open for them
        super().__init__(_new_eventfd(name), name)
        try:
            file.on_close(self)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Say whether it was closed, or its device was."""
        return self._ended or super().closed

    def fileno(self) -> int:
        """Return the eventfd, which is non-blocking: readable when something has happened, for ``select``.

        It is readable too once the device has ended: then ``read()`` raises ClosedError. ``close()`` while
        a ``select`` watches the descriptor is for the caller to avoid.

        Raises:
            ClosedError: it was closed, or its device was.
        """
        if self._ended:
            raise self._closed_error()
        return super().fileno()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until something has happened, and return how often since it was last asked for, at least 1.

        ``timeout`` is in seconds; None waits for ever, 0 not at all. Signal handlers run meanwhile.

        Raises:
            IrqTimeoutError: nothing has happened by then.
            ClosedError: it was closed, or its device was, before or meanwhile.
        """
        count = self._take(_FOREVER if timeout is None else _deadline(timeout))
        if not count:
            raise self._timed_out(timeout)
        return count

    def read(self) -> int:
        """Return how often it has happened since it was last asked for, 0 for never; does not wait.

        Raises:
            ClosedError: it was closed, or its device was.
        """
        return self._take(0)

    async def wait_async(self, timeout: float | None = None) -> int:
        """Wait as ``wait()`` does, in a task of asyncio; a task that is cancelled takes nothing away.

        Raises:
            IrqTimeoutError: nothing has happened by then.
            ClosedError: it was closed, or its device was, before or meanwhile.
        """
        deadline = _FOREVER if timeout is None else _deadline(timeout)
        while not (count := self.read()):
            if deadline != _FOREVER and time.monotonic_ns() >= deadline:
                raise self._timed_out(timeout)
            await self._readable(deadline)
        return count

    def revoke(self, reason: str) -> None:
        """End it, from any thread: who waits, or uses it later, gets a ClosedError with this reason.

        The descriptor stays open, and readable from now on, for those that watch it.
        """
        with self._lock:
            self._end(reason)

    def close(self) -> None:
        """End it and close the descriptor; calls after the first do nothing."""
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
        with contextlib.suppress(BlockingIOError):  # full, so readable
            os.eventfd_write(self._fd, 1)

    def _take(self, deadline: int) -> int:
        """Return the count, or 0 where the deadline has passed. The time that this takes is latency."""
        with self._lock:
            fd = self._fd
            if self._ended or fd < 0:
                raise self._closed_error()
            self._inside += 1
        try:
            result = _wait(fd, deadline)
            while result == _INTERRUPTED:  # Python has run its signal handlers since
                result = _wait(fd, deadline)
        finally:
            with self._lock:
                self._inside -= 1
                if self._ended:
                    self._wake()  # the others: who leaves may have taken the count that was to wake all
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
        """Return when it may be readable, or the deadline has passed."""
        import asyncio

        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        fd = self._duplicate()  # a loop has one reader for a descriptor, and several tasks may wait
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
        self._lock = threading.RLock()  # another thread of the parent may have held it
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
    """Return when the monotonic clock ends a wait, in nanoseconds."""
    return time.monotonic_ns() + int(max(0, min(timeout, _LONGEST)) * 1e9)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
