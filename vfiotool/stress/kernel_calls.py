"""The kernel's answers to a write in sysfs and to an ioctl, as errnos."""

from __future__ import annotations

import errno
import fcntl
import os


def write(path: str, text: str) -> int:
    """Write in one system call; return 0 or the errno."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def ask(fd: int, request: int, question: bytearray) -> int:
    """Do an ioctl, which writes its answer into the question; what the kernel returns, or -errno."""
    try:
        result: int = fcntl.ioctl(fd, int(request), question)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return result
