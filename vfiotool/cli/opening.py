"""A device opened for a verb: what VFIO would say in its own terms is said in those of the machine."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from vfiotool.cli.settings import Settings
from vfiotool.errors import BlockedError, KernelError, VfioToolError
from vfiotool.host.attributes import device_path, find_group
from vfiotool.host.groups import GROUPS, is_vfio_driver
from vfiotool.host.holders import DEVICE_DESCRIPTOR, Holder, find_holders
from vfiotool.host.pending_unbinds import blocked_addresses
from vfiotool.host.selectors import select_meant
from vfiotool.host.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vfiotool.vfio.device import Device

_TAKEN = (errno.EBUSY, errno.EINVAL, errno.EPERM)  # a group, a device of iommufd, another of its group


def select_live(settings: Settings, selector: str) -> str:
    """Return the address of the one device of this machine that an ADDRESS names.

    Raises:
        click.UsageError: it is another machine that is looked at.
        SelectorError, DeviceNotFoundError: as for ``select_meant``.
    """
    (address,) = select_meant(settings.require_live(), [selector], several=False)
    return address


def is_on_vfio(tree: Tree, address: str) -> bool:
    """Say whether a device is on a VFIO driver now."""
    return is_vfio_driver(tree.find_link(f"{device_path(address)}/driver"))


def open_selected(settings: Settings, address: str, mode: str) -> Device:
    """Open a device through VFIO; raises as ``open_device`` does, and beside:

    VfioToolError: no VFIO driver has it.
    BlockedError: another process holds it, or an unbind of it is pending.
    """
    from vfiotool.vfio.device import open_device

    tree = settings.tree
    if not is_on_vfio(tree, address):
        raise _not_on_vfio(tree, address, settings.state_dir)
    try:
        return open_device(address, iommu=mode)
    except KernelError as error:
        holders = _holders(tree, address, error) if error.errno in _TAKEN else ()
        if not holders:
            raise
        raise _held(address, holders) from error


def _not_on_vfio(tree: Tree, address: str, state_dir: str) -> VfioToolError:
    if address in blocked_addresses(tree, state_dir):
        holders = find_holders(tree).get(DEVICE_DESCRIPTOR, ())
        return BlockedError(
            f"an unbind of {address} is pending: its driver waits for a process to release it",
            holders=[holder.process for holder in holders],
            hint="end the process that holds it, then run 'vfiotool recover'",
        )
    driver = tree.find_link(f"{device_path(address)}/driver")
    where = "on no driver" if driver is None else f"on {driver}"
    return VfioToolError(
        f"{address} is {where}, and only a device on a VFIO driver can be opened",
        hint=f"'vfiotool bind {address}' hands it over, 'vfiotool restore {address}' brings it back",
    )


def _held(address: str, holders: Sequence[Holder]) -> BlockedError:
    names = [f"{holder.process}, fd {holder.fd} on {holder.node}" for holder in holders]
    return BlockedError(
        f"{address} is in use: held by {'; '.join(names)}", holders=names, hint="end that process first"
    )


def _holders(tree: Tree, address: str, error: KernelError) -> Sequence[Holder]:
    """Return who has a node of the device's group open, else, where it is busy, any device's descriptor."""
    from vfiotool.vfio.nodes import cdev_of, group_node

    group = find_group(tree, address)
    if group is None:
        return ()
    members = tree.find_names(f"{GROUPS}/{group}/devices")
    found = find_holders(tree)
    nodes = [group_node(group), *(cdev_of(member) for member in members)]
    holders = [holder for node in nodes if node is not None for holder in found.get(node, ())]
    return holders or (found.get(DEVICE_DESCRIPTOR, ()) if error.errno == errno.EBUSY else ())
