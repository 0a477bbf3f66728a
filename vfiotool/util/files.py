"""Files that are there as a whole, or as they were before: reports, which a full disk must not cut."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

from vfiotool.errors import VfioToolError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: str, chunks: Iterable[str]) -> None:
    """Write a text and have it take its name only once all of it is on the disk.

    What UTF-8 cannot hold becomes a question mark. Two must not write the same path at once.

    Raises:
        VfioToolError: it cannot be written; what was there before still is, and nothing else.
    """
    new = temporary_name(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(fd, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)


def temporary_name(path: str) -> str:
    """Return what a file is called until it is whole."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.new")


def cannot_write(path: str, error: OSError) -> VfioToolError:
    """Return what to say of a file that could not be written."""
    remedy = "make room on its disk" if error.errno in _FULL else "see that its folder is there and yours"
    return VfioToolError(
        f"{path} cannot be written: {error.strerror or error}",
        hint=f"{remedy}, or name another folder",
    )
