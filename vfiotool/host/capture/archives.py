"""Archives with the files of a machine, unpacked for as long as they are read.

Archives are untrusted. An archive is unpacked into a private directory, within limits of size and number,
and only if all its entries are directories, plain files and links that stay inside.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import posixpath
import re
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO

from vfiotool.host.capture.captured_tree import NOTES, unusable

MOST_ENTRIES = 200_000
MOST_BYTES = 256 << 20
_CHUNK = 1 << 20
_DESCRIPTOR = re.compile(r"proc/\d+/fd/\d+")


@contextlib.contextmanager
def unpacked(archive: str) -> Iterator[str]:
    """Unpack an archive into a temporary directory and yield its path; remove it after the block.

    Raises:
        VfioToolError: the archive is not a capture, or has an entry that no capture has.
    """
    with tempfile.TemporaryDirectory(prefix="vfiotool-") as folder:
        try:
            if not stat.S_ISREG(os.stat(archive).st_mode):
                raise ValueError("neither a directory nor a plain file")
            with open(archive, "rb") as file, tempfile.TemporaryFile() as plain:
                _decompress(file, plain)
                with tarfile.open(fileobj=plain, mode="r:") as tar:
                    _unpack(tar, folder)
            if not os.path.isfile(folder + NOTES):
                raise ValueError(f"{NOTES} is missing")
        except (OSError, EOFError, ValueError, RecursionError, zlib.error, tarfile.TarError) as error:
            raise unusable(archive, str(error) or type(error).__name__) from error
        yield folder


def _decompress(file: IO[bytes], plain: IO[bytes]) -> None:
    """Decompress before parsing: sizes in headers are then bounded by the size of the data."""
    size = 0
    with gzip.GzipFile(fileobj=file) as packed:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            if size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
            plain.write(chunk)
    plain.seek(0)


def _unpack(tar: tarfile.TarFile, folder: str) -> None:
    writer = _Writer(folder)
    for count, member in enumerate(tar, 1):
        if count > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES} entries")
        if member.isdir():
            writer.add_folder(_checked(member.name))
        elif member.issym():
            writer.add_link(_checked(member.name), member.linkname)
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
            content = tar.extractfile(member)
            assert content is not None  # noqa: S101 - it is a plain file
            writer.add_file(_checked(member.name), content.read())
        else:
            raise ValueError(f"{member.name!r} is neither a directory, nor a plain file, nor a link")
    writer.check_links()


def _checked(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise ValueError(f"{name!r} leads out of it")
    return name


class _Writer:
    """Writes below a private directory. Every directory on the way to an entry was created by this writer."""

    def __init__(self, folder: str) -> None:
        self._root = folder
        self._folders = {""}
        self._links: list[str] = []

    def add_folder(self, name: str) -> None:
        """Create a directory and its parents; do nothing if this writer created it before."""
        if name in self._folders:
            return
        self.add_folder(name.rpartition("/")[0])
        os.mkdir(f"{self._root}/{name}", 0o700)
        self._folders.add(name)

    def add_file(self, name: str, content: bytes) -> None:
        """Write a new file."""
        self.add_folder(name.rpartition("/")[0])
        fd = os.open(f"{self._root}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(content)

    def add_link(self, name: str, target: str) -> None:
        """Create a link that stays inside, or an open file of a process, which is never followed."""
        parent = name.rpartition("/")[0]
        is_node = target.startswith("/dev/vfio/") and posixpath.normpath(target) == target
        if _DESCRIPTOR.fullmatch(name) is None or not is_node:
            depth = parent.count("/") + 1 if parent else 0
            if target.startswith("/") or _climbs(target) > depth:
                raise ValueError(f"the link {name!r} leads out of it, to {target!r}")
            self._links.append(name)
        self.add_folder(parent)
        os.symlink(target, f"{self._root}/{name}")

    def check_links(self) -> None:
        """Check, once all links exist, that each resolves to a path inside, or to nothing."""
        root = os.path.realpath(self._root)
        for name in self._links:
            path = f"{root}/{name}"
            if not f"{os.path.realpath(path)}/".startswith(f"{root}/"):
                raise ValueError(f"the link {name!r} leads out of it")
            try:
                os.stat(path)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise ValueError(f"the link {name!r} leads to itself") from None


def _climbs(target: str) -> int:
    """Return how many levels a relative target climbs above its directory at most."""
    depth = lowest = 0
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        lowest = min(lowest, depth)
    return -lowest
