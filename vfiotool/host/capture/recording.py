"""Record a machine: an archive with the files that the reading verbs read, and nothing else.

The readers run once on a tree that records each file that they read; exactly these files go into the archive.
So the archive cannot differ from what the readers need.
"""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import json
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import addresses
from vfiotool.host.capture.captured_tree import NOTES, SCHEMA
from vfiotool.host.capture.redaction import is_kept, redact
from vfiotool.host.device_details import read_details
from vfiotool.host.devices import read_devices
from vfiotool.host.doctor import examine
from vfiotool.host.groups import group_ids, read_groups, with_members
from vfiotool.host.pending_unbinds import STATE_DIR, pending_dir
from vfiotool.host.tree import GONE, Tree
from vfiotool.host.usage.network import CAPTURED, read_network
from vfiotool.pci.names import PciNames

_SELF = "/proc/self"
_Found = TypeVar("_Found")
_ABSENT = (*GONE, errno.ESRCH, errno.ENOTDIR)


@dataclasses.dataclass(slots=True)
class Capture:
    """The content of an archive, by canonical path: directories, links with their targets, files.

    ``unreadable`` has the errno of each failed read, ETIMEDOUT if it blocked; ``nodes`` has the permission
    bits, owner and group of device nodes.
    """

    folders: set[str] = dataclasses.field(default_factory=set)
    links: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    unreadable: dict[str, int] = dataclasses.field(default_factory=dict)
    nodes: dict[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)

    @property
    def entries(self) -> int:
        """The number of entries of the archive."""
        return len(self.folders) + len(self.links) + len(self.files) + 1

    def archive(self) -> bytes:
        """Return the archive (tar, gzip). The same content gives the same bytes."""
        packed = io.BytesIO()
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for member, content in sorted(self._members(), key=lambda entry: entry[0].name):
                tar.addfile(member, io.BytesIO(content))
        return packed.getvalue()

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        for path in self.folders:
            yield _member(path, tarfile.DIRTYPE, 0o755), b""
        for path, target in self.links.items():
            member = _member(path, tarfile.SYMTYPE, 0o777)
            member.linkname = target
            yield member, b""
        notes = {"schema": SCHEMA, "unreadable": self.unreadable, "nodes": self.nodes}
        text = json.dumps(notes, sort_keys=True).encode()
        for path, content in {**self.files, NOTES: text}.items():
            member = _member(path, tarfile.REGTYPE, 0o644)
            member.size = len(content)
            yield member, content


def _member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path.lstrip("/"))
    member.type, member.mode = kind, mode
    return member


def capture(tree: Tree, *, state_dir: str = STATE_DIR) -> Capture:
    """Capture a machine, as completely as this user's permissions allow. Bounded in time like the readers."""
    seen = _Watched(tree.root)
    _look(seen, state_dir)
    copier = _Copier(tree, state_dir)
    copier.copy(seen)
    copier.capture.files[CAPTURED] = _network(tree)
    return copier.capture


def _network(tree: Tree) -> bytes:
    network = read_network(tree)
    return b"null" if network is None else network.to_json().encode()


def _look(tree: Tree, state_dir: str) -> None:
    """Read all files that ``list``, ``groups``, ``show`` of each device, and ``doctor`` read."""
    names = PciNames(b"")
    devices = read_devices(tree, addresses(tree), names, state_dir=state_dir)
    with_members(tree, read_groups(tree, group_ids(tree), devices), devices)
    for device in devices:
        read_details(tree, device, devices)
    examine(tree, state_dir=state_dir)


class _Watched(Tree):
    """A tree that records each path that is read and the result, and reads each from the machine once."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._machine = Tree(root)
        self.present: dict[str, None] = {}
        self.listed: dict[str, list[str] | OSError] = {}
        self.contents: dict[str, bounded_reads.ReadResult] = {}
        self.nodes: dict[str, tuple[int, int, int]] = {}
        self._resolved: dict[str, str] = {}

    @property
    def unrecorded(self) -> Tree:
        return self._machine

    def path(self, path: str) -> str:
        self.present[path] = None
        return super().path(path)

    def read_bytes(self, path: str) -> bytes:
        if self.contents.get(path) is None:
            self.contents[path] = _or_error(super().read_bytes, path)
        return _or_raise(self.contents[path])

    def names(self, path: str) -> list[str]:
        if path not in self.listed:
            self.listed[path] = _or_error(super().names, path)
        elif path == "/proc":
            return []  # each reader looks for holders among all processes: once is enough
        return _or_raise(self.listed[path])

    def find_link(self, path: str) -> str | None:
        self.present[path] = None
        return super().find_link(path)

    def exists(self, path: str) -> bool:
        self.present[path] = None
        return super().exists(path)

    def resolve(self, path: str) -> str:
        self.present[path] = None
        if path not in self._resolved:
            self._resolved[path] = super().resolve(path)
        return self._resolved[path]

    def access(self, path: str) -> tuple[int, int, int]:
        self.nodes[path] = super().access(path)
        return self.nodes[path]

    def nonblocking_reads(self, paths: Sequence[str]) -> dict[str, bounded_reads.ReadResult]:
        unknown = [path for path in paths if self.contents.get(path) is None]
        self.contents.update(bounded_reads.read_all(self._machine, unknown))
        return {path: self.contents[path] for path in paths}


def _or_error(read: Callable[[str], _Found], path: str) -> _Found | OSError:
    try:
        return read(path)
    except OSError as error:
        return error


def _or_raise(found: _Found | OSError | None) -> _Found:
    if isinstance(found, OSError):
        raise found
    assert found is not None  # noqa: S101 - only bounded reads return None
    return found


class _Copier:
    """Copies the recorded files into a capture, with the links on the way to them."""

    def __init__(self, tree: Tree, state_dir: str) -> None:
        self._tree = tree
        self._pending = f"{pending_dir(state_dir)}/"
        self._resolved: dict[str, str | None] = {"/": "", "": ""}
        self.capture = Capture()

    def copy(self, seen: _Watched) -> None:
        """Copy all that was recorded, except what a capture must not contain."""
        for path in seen.present:
            self._place(path)
        for path, names in seen.listed.items():
            if is_kept(path):
                self._copy_names(path, names)
        for path, answer in seen.contents.items():
            if is_kept(path):
                self._copy_content(path, answer)
        for path, access in seen.nodes.items():
            if self._place(path) is not None:
                self.capture.nodes[path] = access

    def _copy_names(self, path: str, names: list[str] | OSError) -> None:
        if isinstance(names, OSError):
            self._note_error(path, names)
            return
        folder = self._resolve(path)
        if self._place(path) is not None and folder is not None:
            self._place(folder)
            for name in names:
                self._place(f"{folder}/{name}")

    def _copy_content(self, path: str, answer: bounded_reads.ReadResult) -> None:
        if not isinstance(answer, bytes):
            self._note_error(path, answer or TimeoutError(errno.ETIMEDOUT, ""))
            return
        file = self._resolve(path) if self._place(path) is not None else None
        if file is not None and self._place(file) in self.capture.files:
            kept = answer if path.startswith(self._pending) else redact(path, answer)
            self.capture.files[file] = kept

    def _note_error(self, path: str, error: OSError) -> None:
        if error.errno is not None and error.errno not in _ABSENT:
            self.capture.unreadable[path] = error.errno

    def _place(self, path: str) -> str | None:
        """Add a path and the links on its way; return the resolved path, or ``None`` if it does not exist."""
        parent, _, name = path.rpartition("/")
        folder = self._resolve(parent)
        if folder is None:
            return None
        full = f"{folder}/{name}" if name else folder
        return full if self._is_placed(full) or self._add(full) else None

    def _is_placed(self, full: str) -> bool:
        held = self.capture
        return full in held.files or full in held.links or full in held.folders

    def _add(self, full: str) -> bool:
        target = self._target(full)
        try:
            mode = os.lstat(self._tree.path(full)).st_mode
        except OSError:
            return False
        if not is_kept(full, target=target):
            return False
        self._add_folders(posixpath.dirname(full))
        if target is not None:
            self.capture.links[full] = _relative(full, target)
        elif stat.S_ISDIR(mode) or full == _SELF:
            self._add_folders(full)
        else:
            self.capture.files[full] = b""
        return True

    def _add_folders(self, full: str) -> None:
        while full not in ("", "/") and full not in self.capture.folders:
            self.capture.folders.add(full)
            full = posixpath.dirname(full)

    def _target(self, full: str) -> str | None:
        """Return the target of a link, or ``None`` if it is no link; ``/proc/self`` counts as a directory."""
        try:
            return None if full == _SELF else os.readlink(self._tree.path(full))
        except OSError:
            return None

    def _resolve(self, path: str) -> str | None:
        """Return a path with all links resolved, and add these links; ``None`` if they form a loop."""
        if path not in self._resolved:
            self._resolved[path] = None
            parent, _, name = path.rpartition("/")
            folder = self._resolve(parent)
            if folder is not None:
                self._resolved[path] = self._step(f"{folder}/{name}")
        return self._resolved[path]

    def _step(self, full: str) -> str | None:
        target = self._target(full)
        if target is None:
            return full
        self._place(full)
        return self._resolve(posixpath.normpath(posixpath.join(posixpath.dirname(full), target)))


def _relative(full: str, target: str) -> str:
    """Return the target of a link relative to it, so that it stays inside; keep an open file's as it is."""
    if target.startswith("/") and not full.startswith("/proc/"):
        return posixpath.relpath(target, posixpath.dirname(full))
    return target
