"""The single changes that plans are made of, and which of them lead from one state to another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vfiotool.binding.ownership import RULES, Owner, rule_path
from vfiotool.host.attributes import device_path
from vfiotool.host.device_state import (
    AUTOPROBE,
    NUMVFS,
    OVERRIDE,
    POWER,
    ROOTS_ALONE,
    DeviceState,
    NodeAccess,
)
from vfiotool.host.groups import is_vfio_driver

DRIVERS = "/sys/bus/pci/drivers"
MODPROBE = "modprobe"
CLEAR = "\n"
"""What clears an override: an empty write does nothing, and a space names a driver of that name."""

Event = tuple[str, str]
"""A uevent to come: its action, and the address of the device."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change for a device: ``value`` is written to ``path``.

    Where the path is ``modprobe``, the module ``value`` is loaded; where it is a node in ``/dev``,
    ``value`` is its owner, group and mode. ``events`` are the uevents that must follow.
    """

    address: str
    path: str
    value: str
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        if self.path == MODPROBE:
            return f"{MODPROBE} {self.value}"
        if self.is_access:
            return f"give {self.path} to {self.value}"
        if self.is_rule:
            return f"give its nodes to {self.value} by {self.path}"
        return f"write {self.value!r} to {self.path}"

    @property
    def is_access(self) -> bool:
        """Say whether it changes who may open a node."""
        return self.path.startswith("/dev/")

    @property
    def is_rule(self) -> bool:
        """Say whether it gives the device's nodes to somebody, for later binds too."""
        return self.path.startswith(f"{RULES}/")

    @property
    def binds(self) -> str | None:
        """The driver that it binds a device to."""
        folder, _, name = self.path.rpartition("/")
        return folder.rpartition("/")[2] if name == "bind" and folder.startswith(f"{DRIVERS}/") else None

    @property
    def unbinds(self) -> bool:
        """Say whether it takes a driver from a device."""
        return self.path.startswith(f"{DRIVERS}/") and self.path.endswith("/unbind")

    @property
    def counts_vfs(self) -> int | None:
        """How many VFs it gives a PF."""
        return int(self.value) if self.path.endswith(f"/{NUMVFS}") else None


def set_attribute(address: str, name: str, value: str, events: Iterable[Event] = ()) -> Step:
    """Write one of a device's own attributes."""
    return Step(address, f"{device_path(address)}/{name}", value, tuple(events))


def set_override(address: str, driver: str | None) -> Step:
    """Wish for a driver, or for none in particular."""
    return set_attribute(address, OVERRIDE, driver or CLEAR)


def bind_to(address: str, driver: str) -> Step:
    """Bind a device by its driver's own file, which tells why it cannot be."""
    return Step(address, f"{DRIVERS}/{driver}/bind", address, (("bind", address),))


def unbind_from(address: str, driver: str) -> Step:
    """Take a device from its driver."""
    return Step(address, f"{DRIVERS}/{driver}/unbind", address, (("unbind", address),))


def grant_to(address: str, owner: Owner) -> Step:
    """Give a device's nodes to an owner, by number."""
    return Step(address, rule_path(address), str(owner))


def steps_between(
    now: DeviceState, wanted: DeviceState, address: str, *, node: str | None = None
) -> Iterable[Step]:
    """Yield what leads from one state to the other; ``node`` is that of the device's group.

    The override is set before the device is let go, so that no other driver can take it between, and
    whether host drivers take VFs before there are any. The power policy is set last: drivers change it
    as they come and go.
    """
    moves = now.driver != wanted.driver
    if now.driver_override != wanted.driver_override:
        yield set_override(address, wanted.driver_override)
    if wanted.numvfs is not None and now.numvfs not in (None, 0, wanted.numvfs):
        yield set_attribute(address, NUMVFS, "0")
    if moves and now.driver is not None:
        yield unbind_from(address, now.driver)
    if moves and wanted.driver is not None:
        yield bind_to(address, wanted.driver)
    if wanted.autoprobe is not None and now.autoprobe not in (None, wanted.autoprobe):
        yield set_attribute(address, AUTOPROBE, str(wanted.autoprobe))
    if wanted.numvfs and now.numvfs != wanted.numvfs:
        yield set_attribute(address, NUMVFS, str(wanted.numvfs))
    if wanted.power_control is not None and (moves or now.power_control != wanted.power_control):
        yield set_attribute(address, POWER, wanted.power_control)
    if node is not None and wanted.node is not None and is_vfio_driver(wanted.driver):
        made_anew = ROOTS_ALONE if moves else now.node
        if made_anew != wanted.node:
            yield Step(address, node, _access(wanted.node))


def made_quietly(now: DeviceState, wanted: DeviceState) -> DeviceState:
    """Return ``wanted``, but that VFs which are made anew get no driver: each is to get back its own."""
    are_made = wanted.numvfs not in (None, 0, now.numvfs)
    return replace(wanted, autoprobe=0) if are_made and wanted.autoprobe else wanted


def _access(node: NodeAccess) -> str:
    return f"{node.uid}:{node.gid} {node.mode:04o}"


def parse_access(value: str) -> NodeAccess:
    """Read the ``value`` of a step that changes who may open a node."""
    owner, _, mode = value.partition(" ")
    uid, _, gid = owner.partition(":")
    return NodeAccess(int(uid), int(gid), int(mode, 8))
