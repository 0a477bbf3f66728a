"""Which processes have a VFIO node open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vfiotool.host.tree import Tree

_NODES = "/dev/vfio"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a node open, by which of its file descriptors."""

    pid: int
    comm: str
    fd: int
    node: str


def find_holders(tree: Tree) -> Mapping[str, tuple[Holder, ...]]:
    """Return the holders of every group and device node, by node.

    Without root only the caller's own processes can be looked at. A process that ends meanwhile is
    passed over. Where no device is on VFIO, no process is looked at.
    """
    nodes = {f"{_NODES}/{name}" for name in tree.find_names(_NODES) if name != "vfio"}
    nodes |= {f"{_NODES}/devices/{name}" for name in tree.find_names(f"{_NODES}/devices")}
    if not nodes:
        return {}
    found: dict[str, list[Holder]] = {}
    for name in tree.find_names("/proc"):
        if name.isdecimal():
            for holder in _open_nodes(tree, int(name), nodes):
                found.setdefault(holder.node, []).append(holder)
    return {node: tuple(holders) for node, holders in found.items()}


def _open_nodes(tree: Tree, pid: int, nodes: set[str]) -> list[Holder]:
    folder = f"/proc/{pid}"
    holders = []
    try:
        for fd in tree.names(f"{folder}/fd"):
            target = os.readlink(tree.path(f"{folder}/fd/{fd}"))
            if target in nodes:
                holders.append(Holder(pid, tree.read(f"{folder}/comm"), int(fd), target))
    except OSError:
        # It is not ours to look at, or it has closed the file or ended: then it holds nothing.
        pass
    return holders
