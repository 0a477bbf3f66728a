"""The kinds of steps that plans are made of, and the steps that lead from one device state to another.

Each kind has an ``address``, and a ``path`` and a ``value`` under which ``--json`` and the transaction
log show it. All are pure data: ``plan_writer`` executes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from vfiotool.binding.ownership import Owner, rule_path
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.device_state import (
    AUTOPROBE,
    D3COLD,
    NUMVFS,
    OVERRIDE,
    POWER,
    ROOTS_ALONE,
    DeviceState,
    NodeAccess,
)
from vfiotool.host.groups import is_vfio_driver

MODPROBE = "modprobe"
CLEAR = "\n"
"""Clears an override when written to it: an empty write has no effect, and a space sets the driver " "."""

DeviceUevent = tuple[str, str]
"""The action of a uevent that a step causes, and the address of its device."""


class SysfsWrite(ABC):
    """A step that writes ``value`` to the sysfs file ``path``; the base of all such kinds.

    ``events`` are the uevents that must follow the write.
    """

    __slots__ = ()
    address: str

    @property
    @abstractmethod
    def path(self) -> str: ...

    @property
    @abstractmethod
    def value(self) -> str: ...

    @property
    def events(self) -> tuple[DeviceUevent, ...]:
        return ()

    def __str__(self) -> str:
        return f"write {self.value!r} to {self.path}"


@dataclass(frozen=True, slots=True)
class SetAttribute(SysfsWrite):
    """Write ``value`` to the device's own attribute ``name``."""

    address: str
    name: str
    value: str

    @property
    def path(self) -> str:
        return f"{device_path(self.address)}/{self.name}"


@dataclass(frozen=True, slots=True)
class SetOverride(SysfsWrite):
    """Set the device's ``driver_override``; ``None`` clears it."""

    address: str
    driver: str | None

    @property
    def path(self) -> str:
        return f"{device_path(self.address)}/{OVERRIDE}"

    @property
    def value(self) -> str:
        return self.driver or CLEAR


@dataclass(frozen=True, slots=True)
class SetVfCount(SysfsWrite):
    """Set how many VFs a PF has; the VFs are added or removed with ``events``."""

    address: str
    count: int
    events: tuple[DeviceUevent, ...] = ()

    @property
    def path(self) -> str:
        return f"{device_path(self.address)}/{NUMVFS}"

    @property
    def value(self) -> str:
        return str(self.count)


@dataclass(frozen=True, slots=True)
class BindDriver(SysfsWrite):
    """Bind the device by its driver's ``bind`` file, a write to which fails with the cause."""

    address: str
    driver: str

    @property
    def path(self) -> str:
        return f"{DRIVERS}/{self.driver}/bind"

    @property
    def value(self) -> str:
        return self.address

    @property
    def events(self) -> tuple[DeviceUevent, ...]:
        return (("bind", self.address),)


@dataclass(frozen=True, slots=True)
class UnbindDriver(SysfsWrite):
    """Unbind the device from its driver."""

    address: str
    driver: str

    @property
    def path(self) -> str:
        return f"{DRIVERS}/{self.driver}/unbind"

    @property
    def value(self) -> str:
        return self.address

    @property
    def events(self) -> tuple[DeviceUevent, ...]:
        return (("unbind", self.address),)


@dataclass(frozen=True, slots=True)
class LoadModule:
    """Load the module of ``driver``, to which a later step binds the device."""

    address: str
    driver: str

    @property
    def path(self) -> str:
        return MODPROBE

    @property
    def value(self) -> str:
        return self.driver

    def __str__(self) -> str:
        return f"{MODPROBE} {self.driver}"


@dataclass(frozen=True, slots=True)
class SetNodeAccess:
    """Set the owner, group and mode of the device's group node."""

    address: str
    path: str
    access: NodeAccess

    @property
    def value(self) -> str:
        return f"{self.access.uid}:{self.access.gid} {self.access.mode:04o}"

    def __str__(self) -> str:
        return f"give {self.path} to {self.value}"


@dataclass(frozen=True, slots=True)
class GrantOwner:
    """Give the device's nodes to an owner, at later binds too, by a udev rule."""

    address: str
    owner: Owner

    @property
    def path(self) -> str:
        return rule_path(self.address)

    @property
    def value(self) -> str:
        return str(self.owner)

    def __str__(self) -> str:
        return f"give its nodes to {self.value} by {self.path}"


@dataclass(frozen=True, slots=True)
class WriteRule:
    """Write a udev rule that binds the device at each boot. ``persist`` writes it, not the plan writer."""

    address: str
    path: str
    value: str

    def __str__(self) -> str:
        return f"write {self.value!r} to {self.path}"


DeviceStep: TypeAlias = SysfsWrite | SetNodeAccess | GrantOwner
Step: TypeAlias = LoadModule | DeviceStep


def steps_between(
    now: DeviceState, target: DeviceState, address: str, *, node: str | None = None
) -> Iterable[DeviceStep]:
    """Yield the steps that lead from one state of a device to another; ``node`` is that of its group.

    The override is set before the unbind, so that no other driver can take the device in between.
    ``sriov_drivers_autoprobe`` is set before VFs are created. The power policies are set last: drivers
    change them at bind and unbind.
    """
    moves = now.driver != target.driver
    if now.driver_override != target.driver_override:
        yield SetOverride(address, target.driver_override)
    if target.numvfs is not None and now.numvfs not in (None, 0, target.numvfs):
        yield SetVfCount(address, 0)
    if moves and now.driver is not None:
        yield UnbindDriver(address, now.driver)
    if moves and target.driver is not None:
        yield BindDriver(address, target.driver)
    if target.autoprobe is not None and now.autoprobe not in (None, target.autoprobe):
        yield SetAttribute(address, AUTOPROBE, str(target.autoprobe))
    if target.numvfs and now.numvfs != target.numvfs:
        yield SetVfCount(address, target.numvfs)
    if target.d3cold_allowed is not None and now.d3cold_allowed not in (None, target.d3cold_allowed):
        yield SetAttribute(address, D3COLD, str(target.d3cold_allowed))
    if target.power_control is not None and (moves or now.power_control != target.power_control):
        yield SetAttribute(address, POWER, target.power_control)
    if node is not None and target.node is not None and is_vfio_driver(target.driver):
        access = ROOTS_ALONE if moves else now.node
        if access != target.node:
            yield SetNodeAccess(address, node, target.node)


def without_autoprobe(now: DeviceState, target: DeviceState) -> DeviceState:
    """Return ``target``, with autoprobe off if VFs are created: each VF is then bound to its own driver."""
    creates_vfs = target.numvfs not in (None, 0, now.numvfs)
    return replace(target, autoprobe=0) if creates_vfs and target.autoprobe else target
