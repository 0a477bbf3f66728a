"""States of devices as the journal's files have them: JSON, of which nothing is believed unchecked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vfiotool.host.device_state import DeviceState, NodeAccess
from vfiotool.host.devices import Device
from vfiotool.pci.address import is_address

_MOST_VFS = 0xFFFF
_POLICIES = ("on", "auto")


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """The state that a device was in: the one that had this address and these ids."""

    address: str
    vendor_id: int
    device_id: int
    state: DeviceState

    @classmethod
    def of(cls, device: Device, state: DeviceState) -> DeviceRecord:
        """Return what to store of a device."""
        return cls(device.address, device.vendor_id, device.device_id, state)

    def is_of(self, device: Device) -> bool:
        """Say whether the device at the address is still the one that was stored."""
        return (device.vendor_id, device.device_id) == (self.vendor_id, self.device_id)


def to_document(stored: DeviceRecord) -> dict[str, Any]:
    """Return what ``from_document`` reads."""
    state = stored.state
    return {
        "address": stored.address,
        "vendor_id": stored.vendor_id,
        "device_id": stored.device_id,
        **state_document(state),
    }


def from_document(document: Any) -> DeviceRecord:
    """Read what ``to_document`` wrote.

    Raises:
        ValueError, KeyError, TypeError: it did not write that.
    """
    address = document["address"]
    if not isinstance(address, str) or not is_address(address):
        raise ValueError(f"{address!r} is not an address")
    return DeviceRecord(
        address=address,
        vendor_id=_number(document["vendor_id"], 0xFFFF),
        device_id=_number(document["device_id"], 0xFFFF),
        state=parse_state(document),
    )


def state_document(state: DeviceState) -> dict[str, Any]:
    """Return what ``parse_state`` reads."""
    node = state.node
    return {
        "driver": state.driver,
        "driver_override": state.driver_override,
        "numvfs": state.numvfs,
        "autoprobe": state.autoprobe,
        "power_control": state.power_control,
        "node": None if node is None else {"uid": node.uid, "gid": node.gid, "mode": node.mode},
    }


def parse_state(document: Mapping[str, Any]) -> DeviceState:
    """Read what ``state_document`` wrote; raises as ``from_document`` does."""
    policy = document["power_control"]
    if policy is not None and policy not in _POLICIES:
        raise ValueError(f"{policy!r} is not a power policy")
    return DeviceState(
        driver=_driver(document["driver"]),
        driver_override=_override(document["driver_override"]),
        numvfs=_optional(document["numvfs"], _MOST_VFS),
        autoprobe=_optional(document["autoprobe"], 1),
        power_control=policy,
        node=_node(document["node"]),
    )


def is_driver_name(name: str) -> bool:
    """Say whether a name can be that of a driver: one part of a path, printable, no space around."""
    return (
        bool(name)
        and name.isprintable()
        and name == name.strip()
        and "/" not in name
        and name not in (".", "..")
    )


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a number up to {most}")
    return value


def _optional(value: object, most: int) -> int | None:
    return None if value is None else _number(value, most)


def _driver(value: object) -> str | None:
    """A driver's name becomes part of a path: it must not lead elsewhere."""
    if value is None:
        return None
    if not isinstance(value, str) or not is_driver_name(value):
        raise ValueError(f"{value!r} is not a driver's name")
    return value


def _override(value: object) -> str | None:
    """An override is only ever written into a file: any line will do, a space too."""
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\n" in value or "\0" in value:
        raise ValueError(f"{value!r} is not a driver's name")
    return value


def _node(value: Any) -> NodeAccess | None:
    if value is None:
        return None
    most = 0xFFFFFFFE  # the largest id but one is "leave as it is"
    return NodeAccess(_number(value["uid"], most), _number(value["gid"], most), _number(value["mode"], 0o777))
