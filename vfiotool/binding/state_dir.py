"""The state folder's files: root's alone (0700, 0600), replaced as a whole, synchronized."""

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
    """Make a folder, with those above it, and have it be this user's alone.

    Raises:
        VfioToolError: it cannot be made, is a symbolic link, or others own it or can write it.
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
    """Open a plain file of this user; a new one is for nobody else.

    Raises:
        VfioToolError: it is no plain file, or others own it or can write it.
        OSError: as the system call has it.
    """
    fd = os.open(path, flags | SAFELY, 0o600)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        os.close(fd)
        raise _foreign(path)
    return fd


def read_own(path: str) -> str:
    """Return a file's text, bytes that are no UTF-8 replaced; raises as ``open_own`` does.

    Raises:
        VfioToolError: also where it is larger than anything that vfiotool writes.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise damaged(path, f"it has more than {_MOST_BYTES} bytes")
    return content.decode("utf-8", "replace")


def replace_own(path: str, text: str) -> None:
    """Write a file as a whole: whoever is killed meanwhile leaves the former one. OSError as it comes."""
    # ``journal.debris`` finds the temporary file of a killed process by this name.
    replace_file(path, [text.encode()], mode=0o600, temporary=f"{path}.new", fsync_folder=True)


def remove_own(path: str) -> None:
    """Remove a file; it need not exist."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_folder(os.path.dirname(path))


@contextlib.contextmanager
def unusable(folder: str) -> Iterator[None]:
    """Say of errors in a block that the state folder cannot be used."""
    try:
        yield
    except OSError as error:
        raise VfioToolError(
            f"the state folder {folder} cannot be written: {error.strerror}",
            hint="run it as root, or name another folder with --state-dir",
        ) from error


def damaged(path: str, cause: str) -> VfioToolError:
    """What to say of a file that cannot be understood."""
    return VfioToolError(
        f"the journal's file {path} cannot be understood ({cause})",
        hint="look at it; if it is of no use, remove it and bind the device as you wish it",
    )


def _foreign(what: str) -> VfioToolError:
    remedy = "run it as root" if os.geteuid() else "remove it"
    return VfioToolError(
        f"{what} is not a plain one that only its user can write",
        hint=f"{remedy}, or name another folder with --state-dir",
    )
