"""Which processes have a VFIO node open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from vfiotool.host.tree import Tree

DEVICE_DESCRIPTOR = "anon_inode:[vfio-device]"
"""What the descriptor that a group gave for a device is called; it does not say which device."""

_NODES = "/dev/vfio"
_CONTAINER = "/dev/vfio/vfio"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a node open, by which of its file descriptors."""

    pid: int
    comm: str
    fd: int
    node: str

    @property
    def process(self) -> str:
        """The process, for a person: ``pid 12 (qemu)``."""
        return f"pid {self.pid} ({self.comm})"


def find_holders(tree: Tree) -> Mapping[str, tuple[Holder, ...]]:
    """Return the holders of every group and device node, and of device descriptors, by node.

    A node that is gone, because an unbind is pending, still has its holders. Without root only the
    caller's own processes can be looked at. A process that ends meanwhile is passed over. Where VFIO
    is not in use, no process is looked at.
    """
    if not tree.find_names(_NODES):
        return {}
    found: dict[str, list[Holder]] = {}
    for name in tree.find_names("/proc"):
        if name.isdecimal():
            for holder in _open_nodes(tree, int(name)):
                found.setdefault(holder.node, []).append(holder)
    return {node: tuple(holders) for node, holders in found.items()}


def _open_nodes(tree: Tree, pid: int) -> list[Holder]:
    """List what a process has open of VFIO; nothing where it is not ours to look at, or has ended."""
    folder = f"/proc/{pid}"
    holders = []
    with contextlib.suppress(OSError):
        for fd in tree.names(f"{folder}/fd"):
            node = _target(tree, f"{folder}/fd/{fd}").removesuffix(" (deleted)")
            is_vfio = node == DEVICE_DESCRIPTOR or (node.startswith(f"{_NODES}/") and node != _CONTAINER)
            if is_vfio and not _is_path_alone(tree, f"{folder}/fdinfo/{fd}"):
                holders.append(Holder(pid, tree.read(f"{folder}/comm"), int(fd), node))
    return holders


def _is_path_alone(tree: Tree, path: str) -> bool:
    """Say whether a descriptor was opened with ``O_PATH``, which opens no device: udevd's are, while it
    gives a node its owner. Where it is not known it counts as open."""
    with contextlib.suppress(OSError, ValueError):
        for line in tree.read(path).splitlines():
            name, _, value = line.partition(":")
            if name == "flags":
                return bool(int(value, 8) & os.O_PATH)
    return False


def _target(tree: Tree, path: str) -> str:
    try:
        return os.readlink(tree.path(path))
    except FileNotFoundError:  # it was closed meanwhile
        return ""
