"""Open a device for a verb, and explain a refusal by the device's driver and holders."""

from __future__ import annotations

import errno

from vfiotool.cli.settings import Settings
from vfiotool.errors import BlockedError, KernelError, VfioToolError
from vfiotool.host.attributes import GROUPS, addresses, device_path, find_group
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.holders import find_device_holders
from vfiotool.host.pending_unbinds import blocked_addresses
from vfiotool.host.selectors import select_meant
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames

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
        BlockedError: another process holds the device, or a change of the device is pending.
        VfioToolError: any error of ``open_device``.
    """
    from vfiotool.vfio.device import open_device

    tree = settings.tree
    if not is_on_vfio(tree, address):
        raise _not_on_vfio(tree, address, settings.state_dir)
    try:
        return open_device(address, iommu=mode, vf_token=vf_token)
    except KernelError as error:
        if error.errno not in _TAKEN:
            raise
        held = find_device_holders(tree, [address], _nodes(tree, address))
        if held.certain or (held.possible and error.errno == errno.EBUSY):
            raise BlockedError(
                f"{address} is in use: {held.cause}", holders=held.lines, hint=f"{held.remedy} first"
            ) from error
        raise


def _not_on_vfio(tree: Tree, address: str, state_dir: str) -> VfioToolError:
    if address in blocked_addresses(tree, state_dir):
        from vfiotool.binding.waiting import still_pending

        return still_pending(tree, state_dir, address, _nodes(tree, address))
    driver = tree.find_link(f"{device_path(address)}/driver")
    where = "on no driver" if driver is None else f"on {driver}"
    return VfioToolError(
        f"{address} is {where}, and only a device on a VFIO driver can be opened",
        hint=_how_to_free(tree, address, state_dir),
    )


def _how_to_free(tree: Tree, address: str, state_dir: str) -> str:
    from vfiotool.host.devices import read_devices
    from vfiotool.host.freeing import how_to_free

    devices = read_devices(tree, addresses(tree), PciNames(b""), state_dir=state_dir)
    return how_to_free(tree, devices, address, state_dir=state_dir)


def _nodes(tree: Tree, address: str) -> list[str]:
    """Return the nodes of a device's group, and of all devices in the group."""
    from vfiotool.vfio.nodes import cdev_of, group_node

    group = find_group(tree, address)
    if group is None:
        return []
    cdevs = [cdev_of(member) for member in tree.find_names(f"{GROUPS}/{group}/devices")]
    return [group_node(group), *(cdev for cdev in cdevs if cdev is not None)]
