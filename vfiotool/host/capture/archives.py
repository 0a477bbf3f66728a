"""Archives with the files of a machine, unpacked for as long as they are read.

An archive is a capture of vfiotool, or a tar file that another tool made of ``/sys`` and ``/proc``. Archives
are untrusted. An archive is unpacked into a private directory, within limits of size and number, and only if
all its links stay inside. Of its other entries, directories and plain files are unpacked.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import itertools
import lzma
import os
import posixpath
import re
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator

from vfiotool.host.capture.captured_tree import NOTES, unusable

MOST_ENTRIES = 200_000
MOST_BYTES = 256 << 20
_CHUNK = 1 << 20
_MOST_MEMORY = 256 << 20
_DEEPEST_ROOT = 4
_DESCRIPTOR = re.compile(r"proc/\d+/fd/\d+")
# What is below the root of a machine, and folders that these have.
_TOPS = {"sys": ("bus", "class", "devices", "kernel"), "proc": ("sys", "cmdline", "cpuinfo", "version")}
_LEFT_OUT = (tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_GZIP, _XZ, _BZIP2, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x28\xb5\x2f\xfd"
_ERRORS = (OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError, tarfile.TarError)


@contextlib.contextmanager
def unpacked(archive: str, note: Callable[[str], None] = lambda text: None) -> Iterator[str]:
    """Unpack an archive into a temporary directory, and yield the root of the machine in it.

    The directory is removed after the block. ``note`` is called with a text for the user if entries were left
    out.

    Raises:
        VfioToolError: the archive has no machine or several, is too large, or has an entry that leads out.
    """
    with tempfile.TemporaryDirectory(prefix="vfiotool-") as folder:
        try:
            if not stat.S_ISREG(os.stat(archive).st_mode):
                raise ValueError("neither a directory nor a plain file")
            with open(archive, "rb") as file, tempfile.TemporaryFile() as plain:
                _decompress(file, plain)
                with tarfile.open(fileobj=plain, mode="r:") as tar:
                    root, left_out = _unpack(tar, folder)
        except _ERRORS as error:
            raise unusable(archive, str(error) or type(error).__name__) from error
        if left_out:
            note(f"{archive}: {left_out} hard links, device nodes and other special files were left out")
        yield f"{folder}/{root}" if root else folder


def _decompress(file: io.BufferedReader, plain: io.BufferedRandom) -> None:
    """Decompress before parsing: sizes in headers are then bounded by the size of the data."""
    size = 0
    for chunk in _plain_chunks(file):
        size += len(chunk)
        if size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        plain.write(chunk)
    plain.seek(0)


def _plain_chunks(file: io.BufferedReader) -> Iterator[bytes]:
    start = file.peek(len(_XZ))
    if start.startswith(_ZSTD):
        raise ValueError("it is compressed by zstd: decompress it with 'zstd -d' first")
    if start.startswith(_XZ):
        return _xz_chunks(file)
    if start.startswith(_GZIP):
        return _chunks(gzip.GzipFile(fileobj=file))
    return _chunks(bz2.BZ2File(file) if start.startswith(_BZIP2) else file)


def _chunks(file: io.BufferedIOBase) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _xz_chunks(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the content of a file of one or several streams. The memory is bounded: a header asks for it."""
    packed = file.read(_CHUNK)
    while packed:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)
        while not stream.eof:
            if not packed and stream.needs_input and not (packed := file.read(_CHUNK)):
                raise EOFError("it is truncated")
            yield stream.decompress(packed, _CHUNK)
            packed = b""
        packed = (stream.unused_data or file.read(_CHUNK)).lstrip(b"\0")


def _unpack(tar: tarfile.TarFile, folder: str) -> tuple[str, int]:
    """Unpack all entries; return the machine's root among them, and how many entries were left out."""
    members = []
    for member in tar:
        members.append((_normal(member.name), member))
        if len(members) > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES} entries")
    root = _root([name for name, _ in members])
    writer = _Writer(folder, root)
    left_out = 0
    for name, member in members:
        if member.isdir():
            writer.add_folder(name)
        elif member.issym():
            writer.add_link(name, member.linkname)
        elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
            content = tar.extractfile(member)
            assert content is not None  # noqa: S101 - it is a plain file
            writer.add_file(name, content.read())
        elif member.type in _LEFT_OUT or member.sparse is not None:
            left_out += 1
        else:
            raise ValueError(f"{member.name!r} is neither a directory, nor a plain file, nor a link")
    writer.check_links()
    return root, left_out


def _normal(name: str) -> str:
    """Return the path of an entry below the archive's root, such as ``sys/bus`` for ``./sys/bus``."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} leads out of it")
    return "/".join(parts)


def _root(names: Iterable[str]) -> str:
    """Return the folder that has the machine's ``/sys`` or, without one, its ``/proc``; empty for the top."""
    found: dict[str, set[str]] = {top: set() for top in _TOPS}
    for name in names:
        if name == NOTES.lstrip("/"):
            return ""
        parts = name.split("/")
        for depth, (top, below) in enumerate(itertools.pairwise(parts[: _DEEPEST_ROOT + 1])):
            if below in _TOPS.get(top, ()) and "proc" not in parts[:depth]:
                found[top].add("/".join(parts[:depth]))
    roots = found["sys"] or found["proc"]
    if not roots:
        raise ValueError("it has neither /sys nor /proc of a machine")
    if len(roots) > 1 and "" not in roots:
        raise ValueError(f"it has several machines: unpack it, and name one of {', '.join(sorted(roots))}")
    return min(roots, key=len)


class _Writer:
    """Writes below a private directory. Every directory on the way to an entry was created by this writer.

    ``machine`` is the folder in it to which absolute links lead.
    """

    def __init__(self, folder: str, machine: str) -> None:
        self._root, self._machine = folder, machine
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
        own = name.removeprefix(f"{self._machine}/") if self._machine else name
        if _DESCRIPTOR.fullmatch(own) is None or not is_node:
            if target.startswith("/"):
                target = self._inside(parent, target)
            depth = parent.count("/") + 1 if parent else 0
            if _climbs(target) > depth:
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

    def _inside(self, parent: str, target: str) -> str:
        """Return an absolute target relative to the folder of its link: ``/`` is the root of the machine."""
        return posixpath.relpath(f"/{self._machine}{posixpath.normpath(target)}", f"/{parent}")


def _climbs(target: str) -> int:
    """Return how many levels a relative target climbs above its directory at most."""
    depth = lowest = 0
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        lowest = min(lowest, depth)
    return -lowest
