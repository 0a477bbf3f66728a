"""The groups of a run, and the model of the running kernel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfiotool.binding.journal import Journal, boot_id
from vfiotool.binding.machine import LiveMachine
from vfiotool.errors import RefusedError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import addresses, find_group
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.era import detect_era
from vfiotool.host.groups import TURN_ON_IOMMU, is_bridge, is_vfio_driver
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.stress.model.lifecycle import Model

VFIO, STUB = "vfio-pci", "pci-stub"
"""The drivers of members, beside their host drivers."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """The endpoints of a group, in order. ``hosts`` holds the host driver of each endpoint that has one."""

    members: tuple[str, ...]
    hosts: Mapping[str, str]


def kernel_model(tree: Tree, state_dir: str) -> Model:
    """Load the drivers, and return the model of the running kernel: the drivers show some of its rules.

    Raises:
        UnsupportedError: this kernel has no VFIO.
        VfioToolError: a driver cannot be loaded.
    """
    for driver in (VFIO, STUB):
        LiveMachine(state_dir).load_module(driver)
    return running_model(tree)


def running_model(tree: Tree) -> Model:
    """Return the model of the running kernel. The VFIO drivers must be loaded."""
    return Model(detect_era(tree), has_device_class=tree.exists("/sys/class/vfio-dev"))


def find_groups(tree: Tree, wanted: Collection[str], state_dir: str) -> tuple[GroupSpec, ...]:
    """Return the groups of devices. ``wanted`` must hold every endpoint of each group.

    Raises:
        RefusedError: a group has another endpoint.
        UnsupportedError: a device has no IOMMU group.
    """
    devices = read_devices(tree, addresses(tree), PciNames.of_this_machine(), state_dir=state_dir)
    groups: dict[int, list[PciDevice]] = {}
    for address in wanted:
        number = find_group(tree, address)
        if number is None:
            raise UnsupportedError(f"{address} is in no IOMMU group", hint=TURN_ON_IOMMU)
        members = [device for device in devices if device.iommu_group == number and not is_bridge(device)]
        groups[number] = members
    lacking = [
        device.address for members in groups.values() for device in members if device.address not in wanted
    ]
    if lacking:
        raise RefusedError(
            f"a run takes whole groups: it would also take {', '.join(lacking)}",
            reasons=[f"{address} shares a group" for address in lacking],
            hint="--group takes every endpoint of the groups",
        )
    journal = Journal(state_dir, boot=boot_id(tree))
    return tuple(_group_spec(members, journal) for _, members in sorted(groups.items()))


def groups_of_trace(tree: Tree, header: Mapping[str, Any], state_dir: str) -> tuple[GroupSpec, ...]:
    """Return the groups of a trace, in the order of the trace, as they are on this machine.

    Raises:
        VfioToolError: a group has other members on this machine, or none.
    """
    groups = []
    for recorded in header["units"]:
        members = tuple(recorded["members"])
        (group, *others) = find_groups(tree, members, state_dir)
        if others or group.members != members:
            raise VfioToolError(
                f"{' and '.join(members)} are not one group on this machine",
                hint="replay the trace on the machine of the run, or on a machine with the same devices",
            )
        groups.append(group)
    return tuple(groups)


def _group_spec(members: Sequence[PciDevice], journal: Journal) -> GroupSpec:
    """A host driver is the present driver of a device, or its driver before the first change by vfiotool."""
    hosts = dict[str, str]()
    for device in members:
        record = journal.find(device.address)
        driver = device.driver if record is None else record.state.driver
        if driver is not None and driver != STUB and not is_vfio_driver(driver):
            hosts[device.address] = driver
    return GroupSpec(tuple(device.address for device in members), hosts)
