"""Write to files of sysfs and other file systems of the kernel."""

from __future__ import annotations

import errno
import os


def write(path: str, text: str, *, append: bool = False) -> int:
    """Write a text in a single system call, as sysfs requires, and return 0 or the errno.

    ``append`` opens with O_APPEND: some files of tracefs are cleared if they are opened without it.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_APPEND if append else 0)
    try:
        fd = os.open(path, flags)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
