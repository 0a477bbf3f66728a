"""The groups of a run, and the model of the running kernel."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vfiotool.binding.journal import Journal, boot_id
from vfiotool.binding.machine import LiveMachine
from vfiotool.errors import RefusedError, UnsupportedError, UsageError, VfioToolError
from vfiotool.host.attributes import addresses, device_path, find_group
from vfiotool.host.checks.iommu import why_no_group
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.era import detect_era
from vfiotool.host.groups import is_bridge, is_vfio_driver
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.stress.model.lifecycle import Model

VFIO, STUB = "vfio-pci", "pci-stub"
"""The drivers of members, beside their host drivers."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """The endpoints of a group, in order. ``hosts`` holds the host driver of each endpoint that has one.

    ``tokens`` holds the VF token of each endpoint that needs one: a VF whose PF is on a VFIO driver.
    """

    members: tuple[str, ...]
    hosts: Mapping[str, str]
    tokens: Mapping[str, uuid.UUID] = field(default_factory=dict)


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


def find_groups(
    tree: Tree, wanted: Collection[str], state_dir: str, vf_token: uuid.UUID | None = None
) -> tuple[GroupSpec, ...]:
    """Return the groups of devices. ``wanted`` must hold every endpoint of each group.

    Raises:
        RefusedError: a group has another endpoint, or a device needs a VF token and there is none.
        UnsupportedError: a device has no IOMMU group.
        UsageError: no device needs the VF token.
    """
    groups = _find(tree, wanted, state_dir, vf_token)
    _require_use(groups, vf_token)
    return groups


def _find(
    tree: Tree, wanted: Collection[str], state_dir: str, vf_token: uuid.UUID | None
) -> tuple[GroupSpec, ...]:
    devices = read_devices(tree, addresses(tree), PciNames.of_this_machine(), state_dir=state_dir)
    groups: dict[int, list[PciDevice]] = {}
    for address in wanted:
        number = find_group(tree, address)
        if number is None:
            raise UnsupportedError(f"{address} is in no IOMMU group", hint=why_no_group(tree))
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
    tokens = _tokens(tree, [device for members in groups.values() for device in members], vf_token)
    return tuple(_group_spec(members, journal, tokens) for _, members in sorted(groups.items()))


def groups_of_trace(
    tree: Tree, header: Mapping[str, Any], state_dir: str, vf_token: uuid.UUID | None = None
) -> tuple[GroupSpec, ...]:
    """Return the groups of a trace, in the order of the trace, as they are on this machine.

    Raises:
        VfioToolError: a group has other members on this machine, or none; or as for ``find_groups``.
    """
    groups = []
    for recorded in header["units"]:
        members = tuple(recorded["members"])
        (group, *others) = _find(tree, members, state_dir, vf_token)
        if others or group.members != members:
            raise VfioToolError(
                f"{' and '.join(members)} are not one group on this machine",
                hint="replay the trace on the machine of the run, or on a machine with the same devices",
            )
        groups.append(group)
    _require_use(groups, vf_token)
    return tuple(groups)


def _tokens(tree: Tree, devices: Iterable[PciDevice], vf_token: uuid.UUID | None) -> dict[str, uuid.UUID]:
    tokens = {}
    for device in devices:
        if device.physfn is None:
            continue
        driver = tree.find_link(f"{device_path(device.physfn)}/driver")
        if not is_vfio_driver(driver):
            continue
        if vf_token is None:
            raise RefusedError(
                f"{device.address} opens only with a VF token: its PF {device.physfn} is on {driver}",
                reasons=[f"{device.address} needs a VF token"],
                hint="pass the token that the PF's owner has set: --vf-token",
            )
        tokens[device.address] = vf_token
    return tokens


def _require_use(groups: Iterable[GroupSpec], vf_token: uuid.UUID | None) -> None:
    if vf_token is not None and not any(group.tokens for group in groups):
        raise UsageError(
            "no device of the run takes a VF token", hint="pass it only for a VF whose PF is on vfio-pci too"
        )


def _group_spec(members: Sequence[PciDevice], journal: Journal, tokens: Mapping[str, uuid.UUID]) -> GroupSpec:
    """A host driver is the present driver of a device, or its driver before the first change by vfiotool."""
    hosts = dict[str, str]()
    for device in members:
        record = journal.find(device.address)
        driver = device.driver if record is None else record.state.driver
        if driver is not None and driver != STUB and not is_vfio_driver(driver):
            hosts[device.address] = driver
    named = tuple(device.address for device in members)
    return GroupSpec(named, hosts, {one: tokens[one] for one in named if one in tokens})
