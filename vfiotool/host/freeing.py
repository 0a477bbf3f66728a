"""How a device is freed for VFIO: the advice of ``vfiotool show``, from the rules that refuse a change."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vfiotool.host.checks.iommu import why_no_group
from vfiotool.host.device_state import DeviceState
from vfiotool.host.devices import PciDevice, find_device
from vfiotool.host.direct_regions import direct_note
from vfiotool.host.driver_ids import native_drivers
from vfiotool.host.era import find_era, has_noiommu
from vfiotool.host.groups import is_bridge, is_vfio_driver, read_groups
from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.taking import refused_changes, take_device
from vfiotool.host.tree import Tree
from vfiotool.host.usage.sight import unseen_uses
from vfiotool.host.variant_drivers import modalias

_NO_DRIVER = DeviceState(None, None)
_UNSEEN_GROUP = "unknown: its IOMMU group is out of sight"
_UNSEEN_RELEASE = "unknown: the kernel's release is out of sight"


def how_to_free(tree: Tree, devices: Sequence[PciDevice], address: str, *, state_dir: str = STATE_DIR) -> str:
    """Return how a device gets to VFIO or, if a VFIO driver has it, back to its host driver.

    A command that would be refused is named with the reasons. ``devices`` are all of the machine.

    Raises:
        DeviceNotFoundError: ``devices`` has no device at this address.
    """
    device = find_device(devices, address)
    if device.blocked:
        return "a change is pending: 'vfiotool recover' finishes it once the driver has released the device"
    if find_era(tree) is None:
        return _UNSEEN_RELEASE
    if is_vfio_driver(device.driver):
        return _way_back(tree, devices, device, state_dir)
    if is_bridge(device):  # no bridge is bound, whatever else forbids it
        return "nothing hands a bridge over: VFIO takes endpoints alone, and what is behind a bridge needs it"
    if device.iommu_group is None and "iommu_group" in device.unavailable:
        return _UNSEEN_GROUP
    if device.iommu_group is None and not has_noiommu(tree):
        return f"no command can: it is in no IOMMU group; {why_no_group(tree)}"
    taking = take_device(tree, devices, address)
    what = "it" if len(taking.devices) == 1 else "the whole group"
    if taking.refused:
        return f"'{taking.command}' refuses it: {taking.why_refused}"
    for group in read_groups(tree, [device.iommu_group], devices) if device.iommu_group is not None else ():
        if note := direct_note(group):
            return f"'{taking.command}' binds {what}, but VFIO may not open it: {note}"
    unless = ", unless it is in use: not all uses are in sight here" if unseen_uses(tree) else ""
    return f"bind {what} with '{taking.command}'{unless}"


def _way_back(tree: Tree, devices: Sequence[PciDevice], device: PciDevice, state_dir: str) -> str:
    """Return how a device on a VFIO driver gets back to a host driver."""
    address, recorded = device.address, _is_recorded(tree, state_dir, device.address)
    alias = modalias(device)
    own = native_drivers(tree, alias) if recorded is False and alias is not None else []
    if recorded:
        command, does = f"vfiotool restore {address}", "restores its former driver"
    elif recorded is None:
        command, does = f"vfiotool restore {address}", "restores its former driver, if vfiotool has bound it"
    elif own:
        chosen = "native" if len(own) == 1 else own[0]
        command, does = f"vfiotool bind --driver {chosen} {address}", f"binds it to {own[0]}"
    else:
        command, does = f"vfiotool unbind {address}", "leaves it without a driver"
    # Any way back begins with an unbind; what the new driver would be is not needed to see what forbids it.
    refused = refused_changes(tree, devices, {address: _NO_DRIVER}, first=address)
    said = f"refuses it: {'; '.join(refused)}" if refused else does
    return f"on {device.driver}; '{command}' {said}"


def _is_recorded(tree: Tree, state_dir: str, address: str) -> bool | None:
    """Return True if vfiotool has recorded the state of a device; ``None`` if this user may not see."""
    if not tree.is_live:
        return None
    try:
        return f"{address}.json" in os.listdir(f"{state_dir}/journal")
    except FileNotFoundError:
        return False
    except OSError:
        return None
