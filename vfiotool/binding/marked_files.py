"""Files of vfiotool's own in folders that it shares with others: udev's rules, hooks of an initramfs.

Each begins with a line that says whose it is, is replaced as a whole and synchronized. What is a
symbolic link, or does not have that line, is somebody else's, and is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

from vfiotool.errors import VfioToolError
from vfiotool.util.files import replace_file, temporary_name

MARK = "# Written by vfiotool"
_MOST_BYTES = 1 << 16


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Keep other vfiotools from writing in a folder meanwhile; waits until they are done.

    Raises:
        VfioToolError: the folder cannot be opened, or a write in the block fails.
    """
    with _explained(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
            os.fsync(fd)
        finally:
            os.close(fd)


def read(path: str) -> str | None:
    """Return the text of a file of ours, ``None`` where nothing is there.

    Raises:
        VfioToolError: it is not ours, or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if os.path.islink(path):
            raise _foreign(path) from error
        raise _unusable(path, error) from error
    with open(fd, "rb") as file:
        is_plain = stat.S_ISREG(os.fstat(fd).st_mode)
        text = file.read(_MOST_BYTES).decode("utf-8", "replace") if is_plain else ""
    if not is_plain or not any(line.startswith(MARK) for line in text.splitlines()[:2]):
        raise _foreign(path)
    return text


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file of ours as a whole; nobody ever sees a part of it. ``locked`` must be held.

    Raises:
        VfioToolError: what is there is not ours, or it cannot be written.
    """
    if read(path) == text and stat.S_IMODE(os.stat(path).st_mode) == mode:
        return
    with _explained(path):
        # Neither udev nor the builder of an initramfs reads a hidden file, the temporary one.
        replace_file(path, [text.encode()], mode=mode)


def remove(path: str) -> bool:
    """Remove a file of ours, and what a killed ``write`` left of it; say whether it was there.

    ``locked`` must be held.

    Raises:
        VfioToolError: what is there is not ours, or it cannot be removed.
    """
    was_there = read(path) is not None
    with _explained(path):
        for one in (path, temporary_name(path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(one)
    return was_there


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: OSError) -> VfioToolError:
    return VfioToolError(f"{path} cannot be used: {error.strerror}", hint="run it as root")


def _foreign(path: str) -> VfioToolError:
    return VfioToolError(
        f"{path} is not vfiotool's own, though it has the name of such a file",
        hint="look at it, and move it out of the way",
    )
