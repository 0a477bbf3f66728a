"""What of this machine hangs on a PCI device: network interfaces, disks, holders of its nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from vfiotool.host.holders import Holder
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_address

_CLASSES = ("net", "block", "nvme")


@dataclass(frozen=True, slots=True)
class Usage:
    """One thing that uses a device; ``kind`` is ``net``, ``block``, ``nvme`` or ``holder``."""

    kind: str
    name: str
    detail: str


def carriers(tree: Tree, kind: str, name: str) -> list[str]:
    """Return the PCI devices that carry an interface, a disk or a partition; none if it is virtual.

    An NVMe namespace that several controllers may share lies below its subsystem, not below a
    device; then all controllers of the subsystem carry it (CONFIG_NVME_MULTIPATH).
    """
    path = os.path.realpath(tree.path(f"/sys/class/{kind}/{name}"))
    if (address := _nearest_address(path)) is not None:
        return [address]
    folder, _, parent = path.rpartition("/")[0].rpartition("/")
    if not parent.startswith("nvme-subsys"):
        return []
    paths = (os.path.realpath(f"{folder}/{parent}/{name}") for name in os.listdir(f"{folder}/{parent}"))
    return sorted({address for address in map(_nearest_address, paths) if address is not None})


def find_carriers(tree: Tree, name: str) -> list[str]:
    """Return the PCI devices that carry whatever has this name; none where nothing has it."""
    return sorted(
        {
            address
            for kind in _CLASSES
            if tree.exists(f"/sys/class/{kind}/{name}")
            for address in carriers(tree, kind, name)
        }
    )


def read_usage(tree: Tree, address: str, holders: Iterable[Holder]) -> tuple[Usage, ...]:
    """Return what uses a device, with the holders of its group as given."""
    return (
        *(
            Usage(kind, name, _detail(tree, kind, name))
            for kind in _CLASSES
            for name in sorted(tree.find_names(f"/sys/class/{kind}"))
            if address in carriers(tree, kind, name)
        ),
        *(
            Usage("holder", holder.node, f"pid {holder.pid} ({holder.comm}), fd {holder.fd}")
            for holder in holders
        ),
    )


def _nearest_address(path: str) -> str | None:
    parts = reversed(path.split("/"))
    return next((part for part in parts if part.count(":") == 2 and is_address(part)), None)


def _detail(tree: Tree, kind: str, name: str) -> str:
    if kind == "net":
        return f"operstate {tree.find(f'/sys/class/net/{name}/operstate') or 'unknown'}"
    if kind == "nvme":
        return f"state {tree.find(f'/sys/class/nvme/{name}/state') or 'unknown'}"
    points = [point for source, point in _mounts(tree) if source == f"/dev/{name}"]
    return f"mounted on {', '.join(points)}" if points else "not mounted"


def _mounts(tree: Tree) -> list[tuple[str, str]]:
    lines = (tree.find("/proc/self/mounts") or "").splitlines()
    return [(fields[0], fields[1]) for fields in map(str.split, lines) if len(fields) > 1]
