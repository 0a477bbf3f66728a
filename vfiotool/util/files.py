"""Write files as a whole: a reader finds the former content or all of the new content, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

from vfiotool.errors import VfioToolError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(
    path: str,
    chunks: Iterable[bytes],
    *,
    mode: int | None = None,
    temporary: str | None = None,
    remove_stale: bool = True,
    fsync_folder: bool = False,
) -> None:
    """Write a temporary file, synchronize it with the disk, and rename it to ``path``.

    ``mode`` are the exact permissions; by default 0644 less the umask. ``temporary`` is the path of the
    temporary file, by default ``temporary_name(path)``. A killed process leaves this file behind: the next
    call removes it, or fails with EEXIST if ``remove_stale`` is false. ``fsync_folder`` lets the new name
    survive a loss of power. Two processes or threads must not write the same path at the same time.

    Raises:
        OSError: the former content and no temporary file of this call remain.
    """
    new = temporary_name(path) if temporary is None else temporary
    if remove_stale:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644 if mode is None else 0o600)
    try:
        with open(fd, "wb") as file:
            file.writelines(chunks)
            file.flush()
            if mode is not None:
                os.fchmod(fd, mode)
            os.fsync(fd)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    if fsync_folder:
        sync_folder(os.path.dirname(path) or ".")


def create_file(path: str, chunks: Iterable[bytes], *, mode: int) -> None:
    """Write a new file as a whole, or leave no file. It overwrites neither ``path`` nor ``path.new``.

    Raises:
        FileExistsError: either file exists.
        OSError: any other failure.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))  # reserves the name
    try:
        replace_file(path, chunks, mode=mode, temporary=f"{path}.new", remove_stale=False)
    except BaseException:
        os.unlink(path)
        raise


def write_whole(path: str, chunks: Iterable[str]) -> None:
    """Write a text as ``replace_file`` does, for a path that the user chose.

    A character that UTF-8 cannot encode becomes a question mark.

    Raises:
        VfioToolError: the file cannot be written; the former content and no other file remain.
    """
    try:
        replace_file(path, (chunk.encode("utf-8", "replace") for chunk in chunks))
    except OSError as error:
        raise cannot_write(path, error) from error


def temporary_name(path: str) -> str:
    """Return the hidden name beside ``path`` that a file has until it is complete."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.new")


def sync_folder(folder: str) -> None:
    """Let the names in a folder survive a loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cannot_write(path: str, error: OSError) -> VfioToolError:
    """Return the error for a file that the user named and that cannot be written."""
    is_full = error.errno in _FULL
    remedy = "free space on its disk" if is_full else "check that its folder exists and is writable"
    return VfioToolError(
        f"{path} cannot be written: {error.strerror or error}",
        hint=f"{remedy}, or name another folder",
    )
