"""Writes to sysfs that do not wait."""

from __future__ import annotations

import errno
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
