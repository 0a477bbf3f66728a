"""A machine whose files were copied: by ``vfiotool capture``, or by another tool."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence

from vfiotool.errors import VfioToolError
from vfiotool.host.tree import Tree

NOTES = "/vfiotool/capture.json"
"""The file in a capture that records the access of device nodes, and the errors of reads."""
SCHEMA = "vfiotool.capture/1"

Access = tuple[int, int, int]


class CopiedTree(Tree):
    """A copy of ``/sys`` and ``/proc`` that another tool made. No read blocks.

    A file may be absent because the tool left it out, or could not read it: what is absent and what cannot be
    read is unknown. So the methods ``find…`` raise no error. No link leads out of the copy, to the files of
    the machine that reads it.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._real = os.path.realpath(root)
        self._inside: dict[str, bool] = {}

    @property
    def is_complete(self) -> bool:
        """Return False: what is absent may exist on the machine."""
        return False

    def read_bytes(self, path: str) -> bytes:
        self._stay_inside(path)
        return super().read_bytes(path)

    def names(self, path: str) -> list[str]:
        self._stay_inside(path)
        return super().names(path)

    def find(self, path: str) -> str | None:
        try:
            return self.read(path)
        except OSError:
            return None

    def find_names(self, path: str) -> list[str]:
        try:
            return self.names(path)
        except OSError:
            return []

    def find_link(self, path: str) -> str | None:
        try:
            self._stay_inside(os.path.dirname(path))
            return super().find_link(path)
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        try:
            self._stay_inside(os.path.dirname(path))
            return super().exists(path)
        except OSError:
            return False

    def nonblocking_reads(self, paths: Sequence[str]) -> dict[str, bytes | OSError | None]:
        return {path: _or_error(self, path) for path in paths}

    def _stay_inside(self, path: str) -> None:
        full = self.path(path)
        if full not in self._inside:
            self._inside[full] = f"{os.path.realpath(full)}/".startswith(f"{self._real}/")
        if not self._inside[full]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


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
        return {path: _or_error(self, path) for path in paths}

    def _fail_as_there(self, path: str) -> None:
        if path in self._unreadable:
            code = self._unreadable[path]
            raise OSError(code, os.strerror(code), path)


def _or_error(tree: Tree, path: str) -> bytes | OSError | None:
    try:
        return tree.read_bytes(path)
    except TimeoutError:  # the read blocked on the machine
        return None
    except OSError as error:
        return error


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
        return CopiedTree(root)
    try:
        return CapturedTree(root, *_parse(json.loads(text)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unusable(tree.path(NOTES), f"{type(error).__name__}: {error}") from error


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


def unusable(path: str, cause: str) -> VfioToolError:
    return VfioToolError(
        f"cannot use {path} as a capture: {cause}",
        hint="make a capture with 'vfiotool capture FILE', or name a folder or a tar with a copy of /sys "
        "and /proc",
    )
