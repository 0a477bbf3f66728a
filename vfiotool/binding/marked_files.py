"""Files that vfiotool writes into folders of other programs: udev rules, hooks of an initramfs.

Each has a mark, a line that says that vfiotool wrote it, and is replaced as a whole. A symbolic link, or a
file without the mark, is not vfiotool's, and is never changed.
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
    """Lock a folder against other vfiotools until the ``with`` block ends; wait until they are done.

    Raises:
        VfioToolError: the folder cannot be opened, or a write in the block fails.
    """
    with explained(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
            os.fsync(fd)
        finally:
            os.close(fd)


def read(path: str) -> str | None:
    """Return the text of a file with the mark, ``None`` if there is no file.

    Raises:
        VfioToolError: the file has no mark, or cannot be read.
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
    """Write a file as a whole; ``text`` includes the mark. The caller holds ``locked``.

    Raises:
        VfioToolError: there is a file without the mark, or the file cannot be written.
    """
    if read(path) == text and stat.S_IMODE(os.stat(path).st_mode) == mode:
        return
    with explained(path):
        # Neither udev nor the builder of an initramfs reads a hidden file, the temporary one.
        replace_file(path, [text.encode()], mode=mode)


def remove(path: str) -> None:
    """Remove a file with the mark, and the temporary file of a ``write`` that was killed.

    No effect if there is no file. The caller holds ``locked``.

    Raises:
        VfioToolError: the file has no mark, or cannot be removed.
    """
    read(path)
    with explained(path):
        for name in (path, temporary_name(path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Raise an ``OSError`` of the block as a ``VfioToolError`` that names the path."""
    try:
        yield
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: OSError) -> VfioToolError:
    return VfioToolError(f"{path} cannot be used: {error.strerror}", hint="run it as root")


def _foreign(path: str) -> VfioToolError:
    return VfioToolError(
        f"{path} is not vfiotool's own: it has no line '{MARK}'",
        hint="inspect the file, and move it to another folder",
    )
