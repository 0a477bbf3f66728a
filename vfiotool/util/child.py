"""A child process for a system call that may never return, to be left behind where it does not.

A thread that is stuck in the kernel would keep its whole process from ever ending.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable

_MAX_FD = 1 << 20


def start_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Run ``work`` in a child; return its pid, and one of the two ends of a socket between both.

    ``work`` is given the other. The child is in a session of its own, so that no Ctrl-C reaches it,
    and has nothing else open: a child that is stuck must not hold its parent's pipes, whose readers
    would wait as well. What ``work`` does must be system calls alone, for its parent may have threads.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, warnings.catch_warnings():
        # Python 3.12 warns of forks in threaded processes, which is safe with system calls alone.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
        if pid:
            return pid, ours.detach()
        try:
            os.setsid()
            os.dup2(theirs.fileno(), 0)
            os.closerange(1, _MAX_FD)
            work(0)
        finally:
            os._exit(0)
