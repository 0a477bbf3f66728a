"""The device nodes of PCI devices: all that drivers have made for them, whatever their class."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree
from vfiotool.host.usage.pci_parents import required_by, with_controllers

_LISTS = {"c": "/sys/dev/char", "b": "/sys/dev/block"}
_VFIO = ("vfio", "vfio-dev")  # their users are holders

# Class in sysfs -> folder of its nodes in /dev (the devnode() of each class).
_FOLDERS = {
    "drm": "dri/",
    "infiniband_cm": "infiniband/",
    "infiniband_mad": "infiniband/",
    "infiniband_verbs": "infiniband/",
    "input": "input/",
    "sound": "snd/",
    "accel": "accel/",
}
# Driver -> nodes that are not below the device in sysfs. They may be shared by all devices of the driver.
_ELSEWHERE = {
    "amdgpu": ("kfd",),
    "megaraid_sas": ("megaraid_sas_ioctl_node",),
    "mpt3sas": ("mpt2ctl", "mpt3ctl"),
    "mlx4_core": ("infiniband/rdma_cm",),
    "mlx5_core": ("infiniband/rdma_cm",),
    "nvidia": ("nvidia[0-9]*",),
}
_NVIDIA_MINOR = re.compile(r"^Device Minor:\s*([0-9]{1,3})\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Node:
    """A node in /dev. ``number`` is its type and device number (``c 226:0``), empty if unknown.

    ``kind`` and ``name`` are those of the device in sysfs (``drm``, ``card0``). ``path`` is where udev makes
    the node; a process can have made it elsewhere, with the same number.
    """

    kind: str
    name: str
    path: str
    number: str
    devices: frozenset[str]


def find_nodes(tree: Tree, wanted: frozenset[str]) -> list[Node]:
    """Return all nodes that need one of these PCI devices, without those of VFIO.

    Source: ``/sys/dev`` (Documentation/ABI/testing/sysfs-dev) lists every device that has a ``dev``
    attribute. Only nodes that a driver makes without sysfs are from a table.
    """
    plain = tree.unrecorded  # a capture has no processes that could open a node
    return [*_in_sysfs(plain, wanted), *_from_table(plain, wanted)]


def _in_sysfs(tree: Tree, wanted: frozenset[str]) -> Iterator[Node]:
    for kind, folder in _LISTS.items():
        for number in sorted(tree.find_names(folder)):
            path = _target(tree, f"{folder}/{number}")
            devices = required_by(with_controllers(tree, path)) if path else frozenset()
            subsystem = tree.find_link(f"{path}/subsystem") if devices & wanted else None
            if subsystem is None or subsystem in _VFIO:
                continue
            name = os.path.basename(path)
            node = f"/dev/{_FOLDERS.get(subsystem, '')}{name.replace('!', '/')}"
            yield Node(subsystem, name, node, f"{kind} {number}", devices)
            if (subsystem, name) == ("watchdog", "watchdog0"):  # it has an older node, too
                yield Node(subsystem, name, "/dev/watchdog", "c 10:130", devices)


def _target(tree: Tree, link: str) -> str:
    """Return the path in ``/sys/devices`` that a link of ``/sys/dev`` has; empty if it is gone."""
    try:
        return os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(tree.path(link))))
    except OSError:
        return ""


def _from_table(tree: Tree, wanted: frozenset[str]) -> Iterator[Node]:
    for address in sorted(wanted):
        for pattern in _patterns(tree, address):
            folder, _, name = f"/dev/{pattern}".rpartition("/")
            for found in sorted(fnmatch.filter(tree.find_names(folder), name)):
                yield Node("", found, f"{folder}/{found}", "", frozenset({address}))


def _patterns(tree: Tree, address: str) -> Iterable[str]:
    driver = tree.find_link(f"{device_path(address)}/driver")
    if driver == "nvidia":
        said = tree.find(f"/proc/driver/nvidia/gpus/{address}/information") or ""
        if (minor := _NVIDIA_MINOR.search(said)) is not None:
            return (f"nvidia{minor[1]}",)
    return _ELSEWHERE.get(driver or "", ())
