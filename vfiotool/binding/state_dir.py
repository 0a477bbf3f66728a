"""The files of the state folder: only their owner can use them (0700, 0600), each replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from vfiotool.errors import VfioToolError
from vfiotool.util.files import replace_file, sync_folder

SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_OTHERS_WRITE = 0o022
_MOST_BYTES = 1 << 24


def make_private(folder: str) -> None:
    """Create a folder that only this user can use, and the folders above it.

    Raises:
        VfioToolError: the folder cannot be created, is a symbolic link, or other users own it or can write
            to it.
    """
    with unusable(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | SAFELY)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
            raise _foreign(f"the state folder {folder}")
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def open_own(path: str, flags: int) -> int:
    """Open a plain file that this user owns, and return its descriptor; a new file gets mode 0600.

    Raises:
        VfioToolError: it is no plain file, or other users own it or can write to it.
        OSError: open() failed.
    """
    fd = os.open(path, flags | SAFELY, 0o600)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        os.close(fd)
        raise _foreign(path)
    return fd


def read_own(path: str) -> str:
    """Return a file's text; bytes that are no UTF-8 are replaced.

    Raises:
        VfioToolError: as ``open_own`` does, or the file is larger than any that vfiotool writes.
        OSError: open() or read() failed.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise damaged(path, f"it has more than {_MOST_BYTES} bytes")
    return content.decode("utf-8", "replace")


def replace_own(path: str, text: str) -> None:
    """Write a file as a whole: if this process is killed meanwhile, the former file stays.

    Raises:
        OSError: the file cannot be written.
    """
    # ``journal.stale_files`` finds the temporary file of a killed process by this name.
    replace_file(path, [text.encode()], mode=0o600, temporary=f"{path}.new", fsync_folder=True)


def remove_own(path: str) -> None:
    """Remove a file; no effect if it does not exist."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_folder(os.path.dirname(path))


@contextlib.contextmanager
def unusable(folder: str) -> Iterator[None]:
    """Turn an ``OSError`` of the ``with`` block into the error that the state folder cannot be used."""
    try:
        yield
    except OSError as error:
        raise VfioToolError(
            f"the state folder {folder} cannot be written: {error.strerror}",
            hint="run it as root, or name another folder with --state-dir",
        ) from error


def damaged(path: str, cause: str) -> VfioToolError:
    """Return the error for a file that cannot be parsed."""
    return VfioToolError(
        f"the journal's file {path} cannot be parsed ({cause})",
        hint="inspect the file; if it is of no use, remove it and bind the device to the driver you want",
    )


def _foreign(what: str) -> VfioToolError:
    """Return the error for a file or folder that another user could have put there."""
    remedy = "run it as root" if os.geteuid() else "remove it"
    return VfioToolError(
        f"{what} is not a plain file or folder that only its user can write",
        hint=f"{remedy}, or name another folder with --state-dir",
    )
