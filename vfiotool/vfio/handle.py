"""The base of all handles: a handle owns a file descriptor and closes it exactly once."""

from __future__ import annotations

import os
import warnings
import weakref
from types import TracebackType
from typing import TypeVar

from vfiotool.errors import ClosedError, KernelError

H = TypeVar("H", bound="Handle")


class Handle:
    """Owns a file descriptor of the kernel; a context manager that closes it.

    Threads may share a handle, since the kernel does its own locking. ``close()`` must not run while another
    thread is inside a call. A forked child has none of its parent's handles: their descriptors are closed in
    the child, and nothing that the parent has set up in the kernel changes.
    """

    _fd = -1
    _why_closed = "open it again"

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name
        _open_handles.add(self)

    @property
    def closed(self) -> bool:
        """Return True if ``close()`` was called."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return the file descriptor.

        Raises:
            ClosedError: the handle is closed.
        """
        if self._fd < 0:
            raise ClosedError(f"{self.name} is closed", hint=self._why_closed)
        return self._fd

    def close(self) -> None:
        """Close the file descriptor; calls after the first do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _close_in_child(self) -> None:
        """Close the copy of the descriptor that a fork made, and nothing else.

        The rest belongs to the parent.
        """
        Handle.close(self)
        self._why_closed = "it belongs to the parent process: open it again in this process, after the fork"

    def __enter__(self: H) -> H:
        self.fileno()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            lost = repr(self)
            self.close()
            warnings.warn(f"{lost} was never closed", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {self._fd}"
        return f"<{type(self).__name__} {self.name}, {state}>"


_open_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def _close_copies() -> None:
    for handle in tuple(_open_handles):
        if not handle.closed:
            handle._close_in_child()


os.register_at_fork(after_in_child=_close_copies)


def checked(result: int, operation: str, subject: str) -> int:
    """Return the result of a shim function, or raise its error.

    Raises:
        KernelError: the result is ``-errno``.
    """
    if result < 0:
        raise KernelError(-result, operation, subject)
    return result
