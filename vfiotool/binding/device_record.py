"""Records of devices' states, and their JSON form in the journal's files. Every field read is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vfiotool.errors import VfioToolError
from vfiotool.host.device_state import DeviceState, NodeAccess
from vfiotool.host.devices import PciDevice
from vfiotool.pci.address import is_address

_MOST_VFS = 0xFFFF
_POLICIES = ("on", "auto")


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """The state that a device was in; ``address`` and ids say which device."""

    address: str
    vendor_id: int
    device_id: int
    state: DeviceState

    @classmethod
    def of(cls, device: PciDevice, state: DeviceState) -> DeviceRecord:
        """Return the record of a device in a state.

        Raises:
            VfioToolError: the ids of the device are unknown, by which it would be known again.
        """
        if device.vendor_id is None or device.device_id is None:
            raise VfioToolError(
                f"the ids of {device.address} cannot be read, so its state cannot be recorded",
                hint=f"see whether it answers: 'vfiotool config {device.address}'",
            )
        return cls(device.address, device.vendor_id, device.device_id, state)

    @property
    def ids(self) -> tuple[int, int]:
        """The vendor and the device id."""
        return self.vendor_id, self.device_id

    def matches(self, device: PciDevice) -> bool:
        """Return True if the device now at the address is the recorded one, by its ids."""
        return (device.vendor_id, device.device_id) == self.ids


def to_document(record: DeviceRecord) -> dict[str, Any]:
    """Return the JSON form of a record, which ``from_document`` reads."""
    return {
        "address": record.address,
        "vendor_id": record.vendor_id,
        "device_id": record.device_id,
        **state_document(record.state),
    }


def from_document(document: Any) -> DeviceRecord:
    """Return the record of a JSON form that ``to_document`` made.

    Raises:
        ValueError, KeyError, TypeError: ``document`` is no such form.
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
    """Return the JSON form of a state, which ``parse_state`` reads."""
    node = state.node
    added = {} if state.d3cold_allowed is None else {"d3cold_allowed": state.d3cold_allowed}  # not in 0.1.0
    return {
        "driver": state.driver,
        "driver_override": state.driver_override,
        "numvfs": state.numvfs,
        "autoprobe": state.autoprobe,
        "power_control": state.power_control,
        "node": None if node is None else {"uid": node.uid, "gid": node.gid, "mode": node.mode},
        **added,
    }


def parse_state(document: Mapping[str, Any]) -> DeviceState:
    """Return the state of a JSON form that ``state_document`` made; raises as ``from_document`` does."""
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
        d3cold_allowed=_optional(document.get("d3cold_allowed"), 1),
    )


def is_driver_name(name: str) -> bool:
    """Return True if a name can be a driver's: one part of a path, printable, no space around it."""
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
    """Check a driver's name, which becomes part of a path and must not lead out of its folder."""
    if value is None:
        return None
    if not isinstance(value, str) or not is_driver_name(value):
        raise ValueError(f"{value!r} is not a driver's name")
    return value


def _override(value: object) -> str | None:
    """Check an override, which is only written to a file: any single line is valid, a space too."""
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\n" in value or "\0" in value:
        raise ValueError(f"{value!r} is not a driver's name")
    return value


def _node(value: Any) -> NodeAccess | None:
    if value is None:
        return None
    most = 0xFFFFFFFE  # 0xFFFFFFFF is -1, with which chown() leaves an id as it is
    return NodeAccess(_number(value["uid"], most), _number(value["gid"], most), _number(value["mode"], 0o777))
