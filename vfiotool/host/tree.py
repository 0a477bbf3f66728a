"""The files in which the kernel shows the machine, below a root that need not be ``/``."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GONE = (errno.ENOENT, errno.ENODEV)
"""How the kernel says that a device went away, before or while one of its files was open."""

_READ_SIZE = 65536


class Tree:
    """The ``/sys``, ``/proc`` and ``/dev`` below a root. Immutable; threads may share it.

    Paths are given as the kernel's own (``/sys/bus/pci/devices``). Methods raise the ``OSError`` of
    the system call; those that are named ``find_…`` return ``None`` where nothing is there.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self._prefix = "" if root == "/" else root.rstrip("/")

    @property
    def is_live(self) -> bool:
        """Say whether this is the running machine, and not a capture of one."""
        return self._prefix == ""

    def path(self, path: str) -> str:
        """Return where a path of the machine lies."""
        return self._prefix + path

    def read_bytes(self, path: str) -> bytes:
        """Return a file's content, in full."""
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
        """Return a file's text without its last newline."""
        return decode(self.read_bytes(path))

    def find(self, path: str) -> str | None:
        """Return a file's text, or ``None`` where the file is not there."""
        try:
            return self.read(path)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return None

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, in no order."""
        return os.listdir(self._prefix + path)

    def find_names(self, path: str) -> list[str]:
        """Return the names in a folder, none where it is not there."""
        try:
            return self.names(path)
        except FileNotFoundError:
            return []

    def find_link(self, path: str) -> str | None:
        """Return the last part of where a symbolic link points, or ``None`` where there is none."""
        try:
            return os.readlink(self._prefix + path).rpartition("/")[2]
        except OSError as error:
            if error.errno not in (*GONE, errno.EINVAL):  # EINVAL: no link, as an IOMMU's own iommu/
                raise
            return None

    def exists(self, path: str) -> bool:
        """Say whether a path is there."""
        return os.path.lexists(self._prefix + path)

    def resolve(self, path: str) -> str:
        """Return a path with all links in it followed, as the machine has it."""
        resolved = os.path.realpath(self._prefix + path)
        return resolved.removeprefix(os.path.realpath(self._prefix)) if self._prefix else resolved

    def access(self, path: str) -> tuple[int, int, int]:
        """Return the permission bits, the owner and the group of a node."""
        status = os.stat(self._prefix + path, follow_symlinks=False)
        return status.st_mode & 0o777, status.st_uid, status.st_gid

    def nonblocking_reads(self, paths: Sequence[str]) -> dict[str, bytes | OSError | None] | None:
        """Return what each read gives if no read can block, else ``None``: see ``bounded_reads``."""
        return None


def decode(content: bytes) -> str:
    """Turn what the kernel wrote into text; bytes that are no UTF-8 are replaced, never an error."""
    return content.decode("utf-8", "replace").removesuffix("\n")
