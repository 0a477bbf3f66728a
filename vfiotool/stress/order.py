"""What is to be run: on which groups of devices, with which workloads, how often, and whether it may be."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vfiotool.binding.journal import Journal
from vfiotool.binding.machine import LiveMachine
from vfiotool.binding.stored import boot_id
from vfiotool.errors import RefusedError, UnsupportedError, UsageError, VfioToolError
from vfiotool.host.attributes import addresses, find_group
from vfiotool.host.devices import Device, read_devices
from vfiotool.host.era import detect_era
from vfiotool.host.groups import TURN_ON_IOMMU, is_bridge, is_vfio_driver
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.stress.action import Action
from vfiotool.stress.group_actor import STUB, VFIO
from vfiotool.stress.model import Model
from vfiotool.stress.stage import Unit
from vfiotool.stress.workloads import ALL, WORKLOADS

LAB_HOST = "vfiotool-lab"
"""The name that a guest of the lab gives itself."""


@dataclass(frozen=True, slots=True)
class Order:
    """``cycles`` bounds how often each workload is done on each group, ``duration`` the run, in seconds.

    ``allowed`` names rules of binding that are lifted, ``jobs`` is how many processes there are at most.
    """

    units: tuple[Unit, ...]
    workloads: tuple[str, ...]
    seed: int
    report: str
    state_dir: str
    reproduce: str
    cycles: int | None = None
    duration: float | None = None
    jobs: int = 1
    allowed: frozenset[str] = frozenset()
    allow_crash: bool = False
    repeated: Mapping[int, Sequence[Sequence[Action]]] = field(default_factory=dict)
    """By unit, the cycles to do in place of the workloads'."""

    @property
    def addresses(self) -> list[str]:
        """All devices of the run."""
        return [address for unit in self.units for address in unit.members]


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


def find_units(tree: Tree, wanted: Collection[str], state_dir: str) -> tuple[Unit, ...]:
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
    return tuple(_unit(members, journal) for _, members in sorted(groups.items()))


def units_of(tree: Tree, header: Mapping[str, Any], state_dir: str) -> tuple[Unit, ...]:
    """Return the groups of a trace, in its order, as they are on this machine.

    Raises:
        VfioToolError: a group of it has other members here, or none.
    """
    units = []
    for recorded in header["units"]:
        members = tuple(recorded["members"])
        (unit, *others) = find_units(tree, members, state_dir)
        if others or unit.members != members:
            raise VfioToolError(
                f"{' and '.join(members)} are not one group on this machine",
                hint="replay a trace on the machine that it comes from, or on one like it",
            )
        units.append(unit)
    return tuple(units)


def _unit(members: Sequence[Device], journal: Journal) -> Unit:
    """Take as a host driver what the device has, or had before vfiotool first changed it."""
    hosts = dict[str, str]()
    for device in members:
        record = journal.find(device.address)
        driver = device.driver if record is None else record.state.driver
        if driver is not None and driver != STUB and not is_vfio_driver(driver):
            hosts[device.address] = driver
    return Unit(tuple(device.address for device in members), hosts)


def parse_workloads(names: str) -> tuple[str, ...]:
    """Return the workloads that a list with commas names; ``all`` is all of them.

    Raises:
        UsageError: there is no such workload.
    """
    chosen = dict.fromkeys(name.strip() for name in names.split(","))
    for name in chosen:
        if name != ALL and name not in WORKLOADS:
            raise UsageError(
                f"there is no workload '{name}'", hint=f"the names are {', '.join([*WORKLOADS, ALL])}"
            )
    return tuple(WORKLOADS) if ALL in chosen else tuple(chosen)


def require_lab(tree: Tree) -> None:
    """Refuse to have the kernel crash anywhere but in a guest of the lab that outlives it.

    Raises:
        RefusedError: this is no guest of the lab, or it would end before it can report.
    """
    if tree.find("/proc/sys/kernel/hostname") != LAB_HOST or "VFIOTOOL_LAB_KERNEL" not in os.environ:
        raise RefusedError(
            "this machine's kernel may not be crashed",
            reasons=["it is no guest of the lab"],
            hint="run it there: 'vfiotool lab run --kernel 5.10 -- vfiotool stress …'",
        )
    if tree.find("/proc/sys/kernel/panic_on_oops") != "0":
        raise RefusedError(
            "this guest ends with its kernel's first bug, before that can be reported",
            reasons=["kernel.panic_on_oops is set"],
            hint="clear it first: 'sysctl kernel.panic_on_oops=0'",
        )
