"""The files in which the kernel shows the machine, below ``/`` or below another root."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GONE = (errno.ENOENT, errno.ENODEV)
"""The errors of a read whose device was removed before or while the file was open."""

_READ_SIZE = 65536


class Tree:
    """The ``/sys``, ``/proc`` and ``/dev`` below a root. Immutable; threads may share it.

    Paths are the kernel's (``/sys/bus/pci/devices``), without the root. Methods raise the ``OSError`` of the
    system call. ``find`` and ``find_link`` return ``None``, and ``find_names`` an empty list, if the file
    does not exist.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self._prefix = "" if root == "/" else root.rstrip("/")

    @property
    def is_live(self) -> bool:
        """Return True if this is the running machine, and not a capture."""
        return self._prefix == ""

    @property
    def is_complete(self) -> bool:
        """Return True if the machine does not have what is absent here: a copy may have left it out."""
        return True

    @property
    def unrecorded(self) -> Tree:
        """The same files, without a record of what is read: for what a capture must not contain."""
        return self

    def path(self, path: str) -> str:
        """Return the path with the root in front."""
        return self._prefix + path

    def read_bytes(self, path: str) -> bytes:
        """Return the whole content of a file."""
        fd = os.open(self._prefix + path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            chunks = []
            while chunk := os.read(fd, _READ_SIZE):
                chunks.append(chunk)
            return b"".join(chunks)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)

    def read(self, path: str) -> str:
        """Return the text of a file without its last newline."""
        return decode(self.read_bytes(path))

    def find(self, path: str) -> str | None:
        """Return the text of a file, or ``None`` if the file does not exist."""
        try:
            return self.read(path)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return None

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, in no particular order."""
        return os.listdir(self._prefix + path)

    def find_names(self, path: str) -> list[str]:
        """Return the names in a directory; an empty list if it does not exist."""
        try:
            return self.names(path)
        except FileNotFoundError:
            return []

    def find_link(self, path: str) -> str | None:
        """Return the last part of the target of a symbolic link, or ``None`` if there is no link."""
        try:
            return os.readlink(self._prefix + path).rpartition("/")[2]
        except OSError as error:
            if error.errno not in (*GONE, errno.EINVAL):  # EINVAL: not a link, as iommu/ of an IOMMU
                raise
            return None

    def exists(self, path: str) -> bool:
        """Return True if a path exists; a dangling link exists, too."""
        return os.path.lexists(self._prefix + path)

    def resolve(self, path: str) -> str:
        """Return a path with all links resolved, without the root."""
        resolved = os.path.realpath(self._prefix + path)
        return resolved.removeprefix(os.path.realpath(self._prefix)) if self._prefix else resolved

    def access(self, path: str) -> tuple[int, int, int]:
        """Return the permission bits, the owner and the group of a device node."""
        status = os.stat(self._prefix + path, follow_symlinks=False)
        return status.st_mode & 0o777, status.st_uid, status.st_gid

    def nonblocking_reads(self, paths: Sequence[str]) -> dict[str, bytes | OSError | None] | None:
        """Return what each read gives if no read can block, else ``None``: see ``bounded_reads``."""
        return None


def decode(content: bytes) -> str:
    """Decode bytes from the kernel, without the last newline; replace bytes that are not UTF-8.

    Zero bytes at the end are no content: tar fills up with them to the size that sysfs pretends.
    """
    return content.rstrip(b"\0").decode("utf-8", "replace").removesuffix("\n")
