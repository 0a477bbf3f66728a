"""The access of VFIO nodes; the viability and direct regions of groups with a device on a VFIO driver."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping

from vfiotool.host.attributes import addresses, find_group
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.direct_regions import OTHER_FIRMWARE, direct_note, is_kept_from_vfio
from vfiotool.host.groups import IommuGroup, group_ids, is_vfio_driver, on_vfio, read_groups
from vfiotool.host.taking import Taking, take_group
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames

_CONTAINER = "/dev/vfio/vfio"
_OTHERS = 0o006
_GROUP = 0o060

Access = tuple[int, int, int]
"""Permission bits, owner and group of a node."""


def check_nodes(tree: Tree, state_dir: str) -> Verdict:
    """Group and device nodes are not open to everyone, and their users may open the container."""
    nodes = {}
    for folder in ("/dev/vfio", "/dev/vfio/devices"):
        for name in sorted(tree.find_names(folder)):
            if f"{folder}/{name}" != "/dev/vfio/devices":
                nodes[f"{folder}/{name}"] = tree.access(f"{folder}/{name}")
    return judge_nodes(nodes)


def judge_nodes(nodes: Mapping[str, Access]) -> Verdict:
    """Judge by the access of each node. Everyone may open the container: it gives access to no device."""
    groups = {path: access for path, access in nodes.items() if path != _CONTAINER}
    if not nodes:
        return Verdict(True, "no VFIO nodes yet: the first bind creates them")
    exposed = [path for path, (mode, _, _) in groups.items() if mode & _OTHERS]
    if exposed:
        return Verdict(
            False, f"all users may open {', '.join(exposed)}", f"chmod o-rwx {shlex.join(exposed)}"
        )
    given = [path for path, (mode, owner, group) in groups.items() if owner or (group and mode & _GROUP)]
    container = nodes.get(_CONTAINER)
    if given and container is not None and container[0] & _OTHERS != _OTHERS:
        return Verdict(
            False,
            f"{', '.join(given)} can be opened without root, but {_CONTAINER} cannot",
            f"chmod 0666 {_CONTAINER}",
        )
    lines = [f"{path} {_who(access)}" for path, access in groups.items()]
    return Verdict(True, ", ".join(lines) or "no group is on a VFIO driver")


def _who(access: Access) -> str:
    mode, owner, group = access
    return f"{mode:04o} of user {owner}, group {group}"


def check_viability(tree: Tree, state_dir: str) -> Verdict:
    """Every group with a device on a VFIO driver is viable."""
    devices = read_devices(tree, addresses(tree), PciNames(b""), state_dir=state_dir)
    return judge_viability(
        read_groups(tree, group_ids(tree), devices), devices, lambda number: take_group(tree, devices, number)
    )


def judge_viability(
    groups: Iterable[IommuGroup], devices: Iterable[PciDevice], take: Callable[[int], Taking]
) -> Verdict:
    """Judge the groups that have a device on a VFIO driver; ``take`` is ``take_group``."""
    handed = {one.address: one for one in devices if is_vfio_driver(one.driver)}
    used = [group for group in groups if any(address in handed for address in group.devices)]
    blocked = [group for group in used if group.viable is False]
    unknown = [str(group.id) for group in used if group.viable is None]
    if not blocked and unknown:
        return Verdict(None, f"it cannot be known whether these groups are viable: {', '.join(unknown)}")
    if not blocked:
        detail = (
            f"groups on a VFIO driver: {len(used)}, all viable" if used else "no group is on a VFIO driver"
        )
        return Verdict(True, detail)
    causes = [
        f"group {group.id} is not viable while {blocker.address} is on {blocker.driver}"
        for group in blocked
        for blocker in group.blockers
    ]
    takings = [take(group.id) for group in blocked]
    remedies = [
        f"'{one.command}' would be refused: {one.why_refused}" if one.refused else one.command
        for one in takings
    ]
    return Verdict(False, "; ".join(causes), "; ".join(remedies))


def check_direct_regions(tree: Tree, state_dir: str) -> Verdict:
    """No device on a VFIO driver is in a group that the kernel keeps from VFIO."""
    numbers = {find_group(tree, address) for address in on_vfio(tree)}
    used = read_groups(tree, [number for number in group_ids(tree) if number in numbers], ())
    return judge_direct_regions(used, kept=is_kept_from_vfio(tree))


def judge_direct_regions(used: Iterable[IommuGroup], *, kept: bool | None) -> Verdict:
    """Judge the groups that have a device on a VFIO driver; ``kept`` as ``is_kept_from_vfio`` returns it."""
    notes = [f"group {group.id}: {direct_note(group)}" for group in used if group.direct_regions]
    unread = [str(group.id) for group in used if group.reserved_regions is None]
    if notes:
        return Verdict(False if kept else None, "; ".join(notes), OTHER_FIRMWARE)
    if unread:
        return Verdict(None, f"the reserved regions of these groups cannot be read: {', '.join(unread)}")
    return Verdict(True, "no group on a VFIO driver has a direct region")
