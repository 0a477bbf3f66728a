"""The usage of PCI devices: network interfaces, disks, consoles, and holders of VFIO nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vfiotool.host.groups import IommuGroup
from vfiotool.host.pci_domains import devices_by_maker
from vfiotool.host.tree import Tree
from vfiotool.host.usage.claim import Claim, some
from vfiotool.host.usage.consoles import display_claims
from vfiotool.host.usage.disks import disk_claims, is_hidden
from vfiotool.host.usage.interfaces import find_interfaces
from vfiotool.host.usage.namespaces import MAY_NOT_INSPECT, why_processes_are_hidden
from vfiotool.host.usage.nodes import Node, find_nodes
from vfiotool.host.usage.openers import find_openers
from vfiotool.host.usage.pci_parents import required_devices
from vfiotool.host.usage.shared_folders import find_shared_folders
from vfiotool.host.usage.sight import unseen_uses
from vfiotool.util.text import printable

_KINDS = ("block", "nvme", "drm", "uio")  # classes in sysfs whose devices are shown even if they are idle
_STATES = {"net": "operstate", "nvme": "state"}

_Claims = Mapping[str, tuple[Claim, ...]]


@dataclass(frozen=True, slots=True)
class Usage:
    """A class device of a PCI device, or a user of it.

    ``kind`` is ``net``, ``block``, ``nvme``, ``drm``, ``uio``, ``display``, ``console``, ``holder``,
    ``folder`` for a shared folder, ``node`` for another node that is open, another class with network
    namespaces, or ``hidden`` for what is out of sight in a network namespace. ``claims`` are the reasons not
    to take the device from the host; empty if it is idle.
    """

    kind: str
    name: str
    detail: str
    claims: tuple[Claim, ...] = ()


def read_usage(
    tree: Tree, addresses: Iterable[str], groups: Iterable[IommuGroup]
) -> Mapping[str, tuple[Usage, ...]]:
    """Return the usage of each of these devices, with the holders of its group if ``groups`` has the group.

    A use that cannot be seen from here is a claim, too, which says why. A disk that is slow to open costs a
    second. The uses of the devices in a PCI domain are uses of the device that makes the domain, too.
    """
    found: dict[str, list[Usage]] = {address: [] for address in addresses}
    idle = "no use in sight" if unseen_uses(tree) else "not in use"
    domains = devices_by_maker(tree, found)
    wanted = frozenset([*found, *itertools.chain(*domains.values())])
    for usage, carrying in _things(tree, wanted, idle):
        makers = {maker for maker, devices in domains.items() if not carrying.isdisjoint(devices)}
        for address in sorted((carrying | makers) & found.keys()):
            found[address].append(usage)
    for group in groups:
        for address in found.keys() & set(group.devices):
            found[address] += _holders(group)
    return {address: tuple(usages) for address, usages in found.items()}


def _things(tree: Tree, wanted: frozenset[str], idle: str) -> Iterator[tuple[Usage, frozenset[str]]]:
    """Yield each use of a wanted device, with all PCI devices that it needs. ``idle`` stands for no use."""
    for found in find_interfaces(tree, wanted):
        yield _usage(found.kind, found.name, found.claims, found.state, idle), found.devices
    nodes = find_nodes(tree, wanted)
    opened = _opened(tree, nodes)
    carried = {kind: _carried(tree, kind, wanted) for kind in _KINDS}
    claims = disk_claims(tree, carried["block"])
    for kind, names in carried.items():
        for name, carrying in names.items():
            uses = [
                claim for node in nodes if (node.kind, node.name) == (kind, name) for claim in opened[node]
            ]
            own = (*(claims.get(name, ()) if kind == "block" else ()), *uses)
            state = tree.find(f"/sys/class/nvme/{name}/state") or "unknown" if kind == "nvme" else None
            yield _usage(kind, name, own, state, idle), carrying
    for node in nodes:
        if node.kind not in _KINDS and opened[node]:
            yield _usage("node", node.path, opened[node], None, idle), node.devices
    for folder in find_shared_folders(tree, wanted):
        yield _usage("folder", folder.name, folder.claims, None, idle), folder.devices
    for kind, name, claim, carrying in display_claims(tree, wanted):
        yield Usage(kind, name, claim.text, (claim,)), carrying


def _carried(tree: Tree, kind: str, wanted: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return the class devices of a kind that need a wanted device, sorted by name."""
    names = sorted(tree.find_names(f"/sys/class/{kind}"))
    carrying = {name: required_devices(tree, kind, name) for name in names if not _is_part(tree, kind, name)}
    return {name: devices for name, devices in carrying.items() if devices & wanted}


def _is_part(tree: Tree, kind: str, name: str) -> bool:
    """Return True if a class device has no node: a path to a disk, or a connector of a graphics card."""
    return (kind == "block" and is_hidden(tree, name)) or (kind == "drm" and "-" in name)


def _opened(tree: Tree, nodes: Sequence[Node]) -> Mapping[Node, tuple[Claim, ...]]:
    """Return the claims of the processes that have each node open, or may have."""
    paths = {node.path: node.number for node in nodes}
    if not paths:
        return {}
    openers = find_openers(tree, paths, {number: path for path, number in paths.items() if number})
    unseen = why_processes_are_hidden(tree) or ("" if openers.is_complete else MAY_NOT_INSPECT)
    otherwise = (Claim("opened", f"may be open in a process out of sight: {unseen}"),) if unseen else ()
    return {
        node: (Claim("opened", f"is open in {some(openers.processes[node.path])}"),)
        if node.path in openers.processes
        else otherwise
        for node in nodes
    }


def _usage(kind: str, name: str, claims: tuple[Claim, ...], state: str | None, idle: str) -> Usage:
    said = [f"{_STATES[kind]} {state}"] if kind in _STATES else []
    said += [claim.text for claim in claims]
    return Usage(kind, name, printable(", ".join(said)) or idle, claims)


def _holders(group: IommuGroup) -> list[Usage]:
    return [Usage("holder", holder.node, f"{holder.process}, fd {holder.fd}") for holder in group.holders]
