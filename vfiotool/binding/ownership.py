"""Who may open a device's VFIO nodes: a udev rule, because the kernel creates the nodes again at each bind.

The rules are in udev's runtime folder, so they end with the boot, as bindings do.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from dataclasses import dataclass

from vfiotool.binding import marked_files, udevadm
from vfiotool.errors import SelectorError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import GROUPS, device_path
from vfiotool.host.tree import Tree
from vfiotool.pci.address import parse_address

RULES_DIR = "/run/udev/rules.d"
_PREFIX, _SUFFIX = "90-vfiotool-owner-", ".rules"
_NO_ID = (1 << 32) - 1  # chown(2) takes it as "leave as it is"


@dataclass(frozen=True, slots=True)
class Owner:
    """A user, and a group if one is named; by number, because udevd may not know the names."""

    uid: int
    gid: int | None = None

    @property
    def mode(self) -> int:
        """The permissions of the nodes: for the user alone, or for the group too; never for all users."""
        return 0o600 if self.gid is None else 0o660

    def __str__(self) -> str:
        return str(self.uid) if self.gid is None else f"{self.uid}:{self.gid}"


def parse_owner(text: str) -> Owner:
    """Return the owner that ``USER`` or ``USER:GROUP`` names, each by a name or number of this machine.

    Raises:
        SelectorError: there is no such user or group.
    """
    user, colon, group = text.partition(":")
    try:
        uid = pwd.getpwuid(int(user)).pw_uid if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except (KeyError, OverflowError, ValueError):
        raise SelectorError(f"there is no user '{user}'", hint="'getent passwd' lists users") from None
    if not colon:
        return Owner(uid)
    try:
        gid = grp.getgrgid(int(group)).gr_gid if group.isdecimal() else grp.getgrnam(group).gr_gid
    except (KeyError, OverflowError, ValueError):
        raise SelectorError(f"there is no group '{group}'", hint="'getent group' lists groups") from None
    return Owner(uid, gid)


def grant(tree: Tree, address: str, owner: Owner) -> None:
    """Give a device's group node and cdev to ``owner``: now, if they exist, and at each later bind.

    Returns when udevd has changed the nodes. A group has one node, so a grant for one device of the group
    holds for all of them.

    Raises:
        UnsupportedError: no udevd runs.
        VfioToolError: another device of the group is granted to another owner, or the rule has no effect;
            the rule is removed then.
    """
    _check_group(tree, address, owner)
    os.makedirs(tree.path(RULES_DIR), mode=0o755, exist_ok=True)
    _change(tree, address, owner)
    try:
        udevadm.reload()
        nodes = _nodes(tree, address)
        for device in nodes.values():
            udevadm.announce_change(tree.path(device))
        for node in nodes:
            _verify(tree, node, owner)
    except BaseException:
        revoke(tree, address)
        raise


def revoke(tree: Tree, address: str) -> None:
    """Revoke what ``grant`` gave: existing nodes become root's, 0600. No effect if nothing was granted.

    The group's node stays as it is while another device of the group is granted.

    Raises:
        VfioToolError: the rule cannot be removed, or was not written by vfiotool.
    """
    if marked_files.read(_rule_path(tree, address)) is None:
        return
    _change(tree, address, None)
    with contextlib.suppress(UnsupportedError):  # without udevd no rule is in force
        udevadm.reload()
    nodes = _nodes(tree, address)
    if any(owner_of(tree, sibling) for sibling in siblings(tree, address)):
        nodes.pop(_group_node(tree, address) or "", None)
    for node in nodes:
        with contextlib.suppress(FileNotFoundError):
            os.chmod(tree.path(node), 0o600)
            os.chown(tree.path(node), 0, 0)


def owner_of(tree: Tree, address: str) -> Owner | None:
    """Return the owner whom a device's nodes are granted to, or ``None``.

    Raises:
        VfioToolError: the rule is not as vfiotool wrote it.
    """
    text = marked_files.read(_rule_path(tree, address))
    if text is None:
        return None
    numbers = text.splitlines()[0].rpartition(" ")[2].partition(":")
    try:
        owner = Owner(int(numbers[0]), int(numbers[2]) if numbers[2] else None)
    except ValueError:
        owner = None
    if owner is None or text != _rule(address, owner):
        raise VfioToolError(
            f"{_rule_path(tree, address)} is not as vfiotool wrote it",
            hint="remove it, then grant the device again",
        )
    return owner


def _check_group(tree: Tree, address: str, owner: Owner) -> None:
    for sibling in siblings(tree, address):
        other = owner_of(tree, sibling)
        if other not in (None, owner):
            raise VfioToolError(
                f"{sibling} is granted to another owner, and their IOMMU group has only one node",
                hint=f"grant both to the same owner, or run 'vfiotool restore {sibling}' first",
            )


def _change(tree: Tree, address: str, owner: Owner | None) -> None:
    with marked_files.locked(tree.path(RULES_DIR)):
        if owner is None:
            marked_files.remove(_rule_path(tree, address))
        else:
            marked_files.write(_rule_path(tree, address), _rule(address, owner))


def rule_path(address: str) -> str:
    """Return the path of the rule of a device."""
    return rule_file(parse_address(address))


def rule_file(address: str) -> str:
    """Return the path of a rule for an address, or for a shell's word that stands for one."""
    return f"{RULES_DIR}/{_PREFIX}{address}{_SUFFIX}"


def assignments(owner: Owner) -> str:
    """Return the part of a udev rule that gives a node to an owner, whatever later rules say."""
    return f'OWNER:="{owner.uid}", GROUP:="{owner.gid or 0}", MODE:="0{owner.mode:o}"'


def is_numeric(owner: Owner) -> bool:
    """Return True if an owner that was read from a file has ids that the kernel accepts."""
    ids = (owner.uid, 0 if owner.gid is None else owner.gid)
    return all(type(number) is int and 0 <= number < _NO_ID for number in ids)


def _rule_path(tree: Tree, address: str) -> str:
    return tree.path(rule_path(address))


def _rule(address: str, owner: Owner) -> str:
    """Return the rule. It matches a group by its device, as group numbers change; a cdev by its parent."""
    gives = assignments(owner)
    return (
        f"{marked_files.MARK} for 'bind --owner', by number: {owner}\n"
        f'SUBSYSTEM=="vfio", TEST=="{GROUPS}/%k/devices/{address}", {gives}\n'
        f'SUBSYSTEM=="vfio-dev", KERNELS=="{address}", {gives}\n'
    )


def siblings(tree: Tree, address: str) -> list[str]:
    """Return the other devices of a device's IOMMU group."""
    group = tree.find_link(f"{device_path(address)}/iommu_group")
    members = tree.find_names(f"{GROUPS}/{group}/devices") if group else []
    return [member for member in members if member != address]


def _group_node(tree: Tree, address: str) -> str | None:
    group = tree.find_link(f"{device_path(address)}/iommu_group")
    return None if group is None else f"/dev/vfio/{group}"


def device_nodes(tree: Tree, address: str) -> list[str]:
    """Return the VFIO nodes of a device that exist now: its group's, and its own."""
    return list(_nodes(tree, address))


def _nodes(tree: Tree, address: str) -> dict[str, str]:
    """Return the nodes that exist now, each with its folder in sysfs.

    From 6.1 on, a kernel without cdevs has the ``vfio-dev`` folder of a device but no node for it.
    """
    group = _group_node(tree, address)
    known = {} if group is None else {group: f"/sys/class/vfio/{os.path.basename(group)}"}
    folder = f"{device_path(address)}/vfio-dev"
    known |= {f"/dev/vfio/devices/{name}": f"{folder}/{name}" for name in tree.find_names(folder)}
    return {node: device for node, device in known.items() if tree.exists(f"{device}/dev")}


def denied(tree: Tree, node: str, owner: Owner) -> str | None:
    """Return what a node's owner and mode are if they are not those that ``owner`` means."""
    try:
        status = os.stat(tree.path(node))
    except OSError as error:
        return f"{node} cannot be read: {error.strerror}"
    found = (status.st_uid, status.st_gid, status.st_mode & 0o777)
    if found == (owner.uid, owner.gid or 0, owner.mode):
        return None
    return f"udevd did not give {node} to its owner: it is {found[0]}:{found[1]}, {found[2]:o}"


def _verify(tree: Tree, node: str, owner: Owner) -> None:
    if problem := denied(tree, node, owner):
        raise VfioToolError(
            problem,
            hint=f"another udev rule may set it: 'udevadm test /sys/class/vfio/{os.path.basename(node)}'",
        )
