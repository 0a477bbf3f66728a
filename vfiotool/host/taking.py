"""What ``vfiotool bind`` and other verbs would say: the rules of refusals, asked before an advice is given.

Every advice that names a command comes from here, so that none names a command that is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import addresses
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import PciDevice, find_device, read_devices
from vfiotool.host.groups import is_bridge, is_vfio_driver
from vfiotool.host.pci_domains import devices_by_maker
from vfiotool.host.plan_context import read_plan_context
from vfiotool.host.refusals import Refusal, refusals
from vfiotool.host.tree import Tree
from vfiotool.host.variant_drivers import VFIO_PCI
from vfiotool.pci.names import PciNames

_TAKEN = DeviceState(VFIO_PCI, VFIO_PCI)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Taking:
    """A command that hands devices to VFIO, the devices, and why it would be refused; empty if it is not."""

    command: str
    devices: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def why_refused(self) -> str:
        """The first reasons as text."""
        more = len(self.refused) - _SHOWN
        return "; ".join(self.refused[:_SHOWN]) + (f"; and {more} more reasons" if more > 0 else "")


def take_device(tree: Tree, devices: Sequence[PciDevice], address: str) -> Taking:
    """Return the command that hands a device to VFIO, with all endpoints that share its group.

    The maker of a PCI domain goes without the devices of the domain, which go with it. ``devices`` are all
    of the machine.

    Raises:
        DeviceNotFoundError: ``devices`` has no device at this address.
    """
    device = find_device(devices, address)
    chosen = _endpoints(tree, devices, device.iommu_group)
    if address not in chosen:  # a bridge, a device without a group, or one that goes with its domain
        chosen = [address]
    option = " --group" if len(chosen) > 1 else ""
    return _taking(tree, devices, f"vfiotool bind{option} {address}", chosen, first=address)


def take_group(tree: Tree, devices: Sequence[PciDevice], number: int) -> Taking:
    """Return the command that hands the endpoints of a group to VFIO; ``devices`` are all of the machine."""
    members = [one.address for one in devices if one.iommu_group == number and not is_bridge(one)]
    return _taking(tree, devices, f"vfiotool bind --group group:{number}", members)


def refused_changes(
    tree: Tree, devices: Sequence[PciDevice], targets: Mapping[str, DeviceState], *, first: str = ""
) -> tuple[str, ...]:
    """Return why the devices may not be brought into these states; the reasons for ``first`` come first.

    A device that is on its driver already is not changed, so nothing forbids it.
    """
    now = {device.address: device.driver for device in devices}
    moved = {address: state for address, state in targets.items() if now.get(address) != state.driver}
    try:
        found = refusals(read_plan_context(tree, devices, moved, probes=False), moved)
    except VfioToolError as error:
        return (str(error),)
    return tuple(_reason(one, first) for one in sorted(found, key=lambda one: one.address != first))


def offer(tree: Tree, address: str, target: DeviceState, command: str, does: str) -> str:
    """Return what a command does and the command, or why it would be refused. It reads the machine anew."""
    devices = read_devices(tree, addresses(tree), PciNames(b""))
    refused = refused_changes(tree, devices, {address: target}, first=address)
    return f"'{command}' would be refused: {'; '.join(refused)}" if refused else f"{does}: '{command}'"


def _reason(refusal: Refusal, first: str) -> str:
    return refusal.reason if refusal.address == first else f"{refusal.address}: {refusal.reason}"


def _taking(
    tree: Tree, devices: Sequence[PciDevice], command: str, chosen: Iterable[str], *, first: str = ""
) -> Taking:
    states = {one.address: one for one in devices}
    blocked = [one for one in chosen if states[one].blocked]
    if blocked:
        reasons: tuple[str, ...] = (f"a change of {', '.join(blocked)} is pending",)
    else:
        moved = {one: _TAKEN for one in chosen if not is_vfio_driver(states[one].driver)}
        reasons = refused_changes(tree, devices, moved, first=first)
    return Taking(command, tuple(chosen), reasons)


def _endpoints(tree: Tree, devices: Iterable[PciDevice], group: int | None) -> list[str]:
    """Return the endpoints of a group, without those in a PCI domain that one of them makes."""
    if group is None:
        return []
    members = [one.address for one in devices if one.iommu_group == group and not is_bridge(one)]
    below = {one for made in devices_by_maker(tree, members).values() for one in made}
    return [one for one in members if one not in below]
