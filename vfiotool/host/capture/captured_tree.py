"""A captured machine as a tree: its directory, or its archive unpacked.

Archives are untrusted. An archive is unpacked into a private directory, within limits of size and number,
and only if all its entries are directories, plain files and links that stay inside.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import posixpath
import re
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from vfiotool.errors import VfioToolError
from vfiotool.host.tree import Tree

NOTES = "/vfiotool/capture.json"
"""The file in a capture that records the access of device nodes, and the errors of reads."""
SCHEMA = "vfiotool.capture/1"

MOST_ENTRIES = 200_000
MOST_BYTES = 256 << 20
_CHUNK = 1 << 20
_DESCRIPTOR = re.compile(r"proc/\d+/fd/\d+")

Access = tuple[int, int, int]


class CapturedTree(Tree):
    """A captured machine: a read raises the error that it raised there, and never blocks."""

    def __init__(self, root: str, unreadable: Mapping[str, int], nodes: Mapping[str, Access]) -> None:
        super().__init__(root)
        self._unreadable, self._nodes = unreadable, nodes

    def read_bytes(self, path: str) -> bytes:
        self._fail_as_there(path)
        return super().read_bytes(path)

    def names(self, path: str) -> list[str]:
        self._fail_as_there(path)
        return sorted(super().names(path), key=lambda name: (len(name), name))

    def access(self, path: str) -> Access:
        return self._nodes.get(path) or super().access(path)

    def nonblocking_reads(self, paths: Sequence[str]) -> dict[str, bytes | OSError | None]:
        return {path: self._answer(path) for path in paths}

    def _answer(self, path: str) -> bytes | OSError | None:
        try:
            return self.read_bytes(path)
        except TimeoutError:
            return None
        except OSError as error:
            return error

    def _fail_as_there(self, path: str) -> None:
        if path in self._unreadable:
            code = self._unreadable[path]
            raise OSError(code, os.strerror(code), path)


def open_tree(root: str) -> Tree:
    """Return the tree below a directory: ``/``, a capture, or any copy of ``/sys`` and ``/proc``.

    Raises:
        VfioToolError: the directory has a capture's notes, and they are malformed.
    """
    tree = Tree(root)
    if tree.is_live:
        return tree
    text = tree.find(NOTES)
    if text is None:
        return tree
    try:
        return CapturedTree(root, *_parse(json.loads(text)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unusable(tree.path(NOTES), f"{type(error).__name__}: {error}") from error


def _parse(document: object) -> tuple[Mapping[str, int], Mapping[str, Access]]:
    if not isinstance(document, dict) or document["schema"] != SCHEMA:
        raise ValueError(f"not a document of {SCHEMA}")
    unreadable = {str(path): _number(code) for path, code in document["unreadable"].items()}
    nodes = {}
    for path, (mode, owner, group) in document["nodes"].items():
        nodes[str(path)] = (_number(mode), _number(owner), _number(group))
    return unreadable, nodes


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ValueError(f"{value!r} is not a 32-bit number")
    return value


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
            raise _unusable(archive, str(error) or type(error).__name__) from error
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


def _unusable(path: str, cause: str) -> VfioToolError:
    return VfioToolError(
        f"cannot use {path} as a capture: {cause}",
        hint="make a capture with 'vfiotool capture FILE', or name a directory with a copy of /sys and /proc",
    )
