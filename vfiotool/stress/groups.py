"""The groups of devices that a run works on, and the rules of the running kernel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfiotool.binding.journal import Journal, boot_id
from vfiotool.binding.machine import LiveMachine
from vfiotool.errors import RefusedError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import addresses, find_group
from vfiotool.host.devices import Device, read_devices
from vfiotool.host.era import detect_era
from vfiotool.host.groups import TURN_ON_IOMMU, is_bridge, is_vfio_driver
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.stress.model.lifecycle import Model

VFIO, STUB = "vfio-pci", "pci-stub"
"""What members are bound to beside their host drivers."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A group's endpoints, in order; ``hosts`` has the host driver of each that has one."""

    members: tuple[str, ...]
    hosts: Mapping[str, str]


def kernel_model(tree: Tree, state_dir: str) -> Model:
    """Return the rules of the running kernel, whose drivers are loaded first: they bring what tells of some.

    Raises:
        UnsupportedError: this kernel has no VFIO.
        VfioToolError: a driver cannot be loaded.
    """
    for driver in (VFIO, STUB):
        LiveMachine(state_dir).load_module(driver)
    return running_model(tree)


def running_model(tree: Tree) -> Model:
    """Return the rules of a kernel that has VFIO loaded."""
    return Model(detect_era(tree), has_device_class=tree.exists("/sys/class/vfio-dev"))


def find_groups(tree: Tree, wanted: Collection[str], state_dir: str) -> tuple[GroupSpec, ...]:
    """Return the groups of these devices, each of which must be there whole.

    Raises:
        RefusedError: a group has endpoints that are not among them.
        UnsupportedError: a device has no IOMMU group.
    """
    devices = read_devices(tree, addresses(tree), PciNames.of_this_machine(), state_dir=state_dir)
    groups: dict[int, list[Device]] = {}
    for address in wanted:
        number = find_group(tree, address)
        if number is None:
            raise UnsupportedError(f"{address} is in no IOMMU group", hint=TURN_ON_IOMMU)
        groups[number] = [one for one in devices if one.iommu_group == number and not is_bridge(one)]
    lacking = [one.address for members in groups.values() for one in members if one.address not in wanted]
    if lacking:
        raise RefusedError(
            f"{', '.join(lacking)} would be taken, too: a group is stressed as a whole",
            reasons=[f"{address} shares a group" for address in lacking],
            hint="--group takes every endpoint of the groups",
        )
    journal = Journal(state_dir, boot=boot_id(tree))
    return tuple(_group_spec(members, journal) for _, members in sorted(groups.items()))


def groups_of_trace(tree: Tree, header: Mapping[str, Any], state_dir: str) -> tuple[GroupSpec, ...]:
    """Return the groups of a trace, in its order, as they are on this machine.

    Raises:
        VfioToolError: a group of it has other members here, or none.
    """
    groups = []
    for recorded in header["units"]:
        members = tuple(recorded["members"])
        (unit, *others) = find_groups(tree, members, state_dir)
        if others or unit.members != members:
            raise VfioToolError(
                f"{' and '.join(members)} are not one group on this machine",
                hint="replay a trace on the machine that it comes from, or on one like it",
            )
        groups.append(unit)
    return tuple(groups)


def _group_spec(members: Sequence[Device], journal: Journal) -> GroupSpec:
    """Take as a host driver what the device has, or had before vfiotool first changed it."""
    hosts = dict[str, str]()
    for device in members:
        record = journal.find(device.address)
        driver = device.driver if record is None else record.state.driver
        if driver is not None and driver != STUB and not is_vfio_driver(driver):
            hosts[device.address] = driver
    return GroupSpec(tuple(device.address for device in members), hosts)
