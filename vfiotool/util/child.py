"""Start child processes by fork.

A system call that never returns needs a child process: a thread that is stuck in the kernel would keep its
whole process from exiting.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Collection

_MAX_FD = 1 << 20


def fork_child(
    run: Callable[[], object],
    *,
    new_session: bool = False,
    ignored_signals: Collection[int] = (),
    kept_fds: Collection[int] | None = None,
) -> int:
    """Run a function in a child process, and return the child's pid.

    The child exits with status 0 when the function returns, or 1 if it raises, without the exit handlers of
    this process. ``new_session`` keeps signals of the terminal and of this process's group away from the
    child. The child ignores ``ignored_signals``. Only the file descriptors in ``kept_fds`` stay open; by
    default all do. If this process has other threads, the function may only make system calls.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork in a process with threads; a child that only makes system calls is safe.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            if new_session:
                os.setsid()
            if ignored_signals:
                _ignore(ignored_signals)
            if kept_fds is not None:
                _close_all_but(kept_fds)
            run()
            status = 0
        finally:
            os._exit(status)


def start_child(run: Callable[[int], object]) -> tuple[int, int]:
    """Run a function of system calls in a child process; return its pid and one end of a socket.

    The function gets the other end. The child has a session of its own, so that no Ctrl-C reaches it, and no
    other file descriptor: a child that is stuck must not hold the pipes of its parent open, because their
    readers would wait too.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        pid = fork_child(lambda: run(fd), new_session=True, kept_fds={fd})
        return pid, ours.detach()


def _close_all_but(fds: Collection[int]) -> None:
    start = 0
    for fd in sorted(fds):
        if start < fd:  # closerange(0, 0) would close everything, by an underflow
            os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, _MAX_FD)


def _ignore(signals: Collection[int]) -> None:
    import signal  # here, because verbs that only read import this module

    for number in signals:
        signal.signal(number, signal.SIG_IGN)
