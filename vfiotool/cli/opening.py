"""Open a device for a verb, and explain a refusal by the device's driver and holders."""

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
    import uuid

    from vfiotool.vfio.device import Device

_TAKEN = (
    errno.EBUSY,
    errno.EINVAL,
    errno.EPERM,
)  # errno of a held group, a held iommufd device, a held device of the same group


def select_live(settings: Settings, selector: str) -> str:
    """Return the address of the device that an ADDRESS selects on the running machine.

    Raises:
        click.UsageError: ``--sysroot`` names another machine.
        SelectorError, DeviceNotFoundError: as for ``select_meant``.
    """
    (address,) = select_meant(settings.require_live(), [selector], several=False)
    return address


def is_on_vfio(tree: Tree, address: str) -> bool:
    """Return True if a device is on a VFIO driver."""
    return is_vfio_driver(tree.find_link(f"{device_path(address)}/driver"))


def open_selected(settings: Settings, address: str, mode: str, vf_token: uuid.UUID | None) -> Device:
    """Open a device through VFIO.

    Raises:
        VfioToolError: the device is not on a VFIO driver.
        BlockedError: another process holds the device, or an unbind of the device is pending.
        VfioToolError: any error of ``open_device``.
    """
    from vfiotool.vfio.device import open_device

    tree = settings.tree
    if not is_on_vfio(tree, address):
        raise _not_on_vfio(tree, address, settings.state_dir)
    try:
        return open_device(address, iommu=mode, vf_token=vf_token)
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
            hint="end the process that holds the device, then run 'vfiotool recover'",
        )
    driver = tree.find_link(f"{device_path(address)}/driver")
    where = "on no driver" if driver is None else f"on {driver}"
    return VfioToolError(
        f"{address} is {where}, and only a device on a VFIO driver can be opened",
        hint=f"bind it with 'vfiotool bind {address}'; 'vfiotool restore {address}' restores its driver",
    )


def _held(address: str, holders: Sequence[Holder]) -> BlockedError:
    names = [f"{holder.process}, fd {holder.fd} on {holder.node}" for holder in holders]
    return BlockedError(
        f"{address} is in use: held by {'; '.join(names)}", holders=names, hint="end that process first"
    )


def _holders(tree: Tree, address: str, error: KernelError) -> Sequence[Holder]:
    """Return the holders of the group's nodes or, if there are none and the errno is EBUSY, of any device."""
    from vfiotool.vfio.nodes import cdev_of, group_node

    group = find_group(tree, address)
    if group is None:
        return ()
    members = tree.find_names(f"{GROUPS}/{group}/devices")
    found = find_holders(tree)
    nodes = [group_node(group), *(cdev_of(member) for member in members)]
    holders = [holder for node in nodes if node is not None for holder in found.get(node, ())]
    return holders or (found.get(DEVICE_DESCRIPTOR, ()) if error.errno == errno.EBUSY else ())
