"""The processes that hold VFIO nodes open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vfiotool.host.tree import Tree

DEVICE_DESCRIPTOR = "anon_inode:[vfio-device]"
"""The name in /proc of a device descriptor that a group returned; it does not name the device."""

_NODES = "/dev/vfio"
_CONTAINER = "/dev/vfio/vfio"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a node open, with the file descriptor."""

    pid: int
    comm: str
    fd: int
    node: str

    @property
    def process(self) -> str:
        """The process as text for the user: ``pid 12 (qemu)``."""
        return f"pid {self.pid} ({self.comm})"

    @property
    def described(self) -> str:
        """The process and its descriptor as text for the user: ``pid 12 (qemu), fd 3 on /dev/vfio/5``."""
        return f"{self.process}, fd {self.fd} on {self.node}"


class DeviceHolders(NamedTuple):
    """Who holds devices through VFIO: ``certain`` are known to, ``possible`` hold some device."""

    certain: tuple[Holder, ...]
    possible: tuple[Holder, ...]

    @property
    def lines(self) -> list[str]:
        """A line for each holder, or if none is certain, for each possible holder."""
        return [holder.described for holder in self.certain or self.possible]

    @property
    def cause(self) -> str:
        """Why the devices are not free, as text for the user; empty if there are no holders."""
        if self.certain:
            return f"held by {'; '.join(self.lines)}"
        if self.possible:
            return f"a VFIO device, which may be this one, is open in {'; '.join(self.lines)}"
        return ""

    @property
    def remedy(self) -> str:
        """What frees the devices, as text for the user; empty if there are no holders."""
        if self.certain:
            return "end that process"
        return "end the process that holds it" if self.possible else ""


def find_holders(tree: Tree) -> Mapping[str, tuple[Holder, ...]]:
    """Return the holders of group nodes, device nodes and device descriptors, by node.

    A node that an unbind has removed still has its holders while the unbind is pending. Without root,
    only the caller's own processes can be inspected. A process that exits meanwhile is left out. If VFIO
    is not in use, no process is inspected.
    """
    if not tree.find_names(_NODES):
        return {}
    found: dict[str, list[Holder]] = {}
    for name in tree.find_names("/proc"):
        if name.isdecimal():
            for holder in _open_nodes(tree, int(name)):
                found.setdefault(holder.node, []).append(holder)
    return {node: tuple(holders) for node, holders in found.items()}


def find_device_holders(tree: Tree, addresses: Collection[str], nodes: Collection[str]) -> DeviceHolders:
    """Return who holds these devices, and who may hold them; ``nodes`` are those of the devices and groups.

    Before Linux 6.18 a descriptor that a group returned does not name its device: then its process may hold
    any. Without root, only the caller's own processes are found.

    Source: "VFIO Device files" in Documentation/filesystems/proc.rst.
    """
    found = find_holders(tree)
    certain = [holder for node in nodes for holder in found.get(node, ())]
    possible = []
    for holder in found.get(DEVICE_DESCRIPTOR, ()):
        device = _device_of(tree, holder)
        if device in addresses:
            certain.append(holder)
        elif device is None:
            possible.append(holder)
    return DeviceHolders(tuple(certain), tuple(possible))


def _device_of(tree: Tree, holder: Holder) -> str | None:
    """Return the address of the device behind a descriptor, or None if the kernel does not say it."""
    with contextlib.suppress(OSError):
        for line in tree.read(f"/proc/{holder.pid}/fdinfo/{holder.fd}").splitlines():
            name, _, path = line.partition(":")
            if name == "vfio-device-syspath":
                return path.strip().rpartition("/")[2]
    return None


def _open_nodes(tree: Tree, pid: int) -> list[Holder]:
    """Return the VFIO nodes that a process holds; empty if it has exited or this user may not inspect it."""
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
    """Return True if a descriptor was opened with ``O_PATH``, which does not open the device.

    udevd opens nodes in this way while it sets their owner. An unreadable descriptor counts as open.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in tree.read(path).splitlines():
            name, _, value = line.partition(":")
            if name == "flags":
                return bool(int(value, 8) & os.O_PATH)
    return False


def _target(tree: Tree, path: str) -> str:
    try:
        return os.readlink(tree.path(path))
    except FileNotFoundError:  # closed meanwhile
        return ""
