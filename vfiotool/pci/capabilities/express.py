"""The PCI Express capability: the type of a function, its link and its slot.

Source: PCI Express Base section 7.5.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vfiotool.pci.acs import PortType, read_port_type
from vfiotool.pci.capability_reader import CutOffError, Reader, names_of

T = TypeVar("T")

_TYPE_NAMES: dict[int, str] = {
    PortType.ENDPOINT: "endpoint",
    PortType.LEGACY_ENDPOINT: "legacy endpoint",
    PortType.ROOT_PORT: "root port",
    PortType.UPSTREAM: "upstream port",
    PortType.DOWNSTREAM: "downstream port",
    PortType.PCIE_TO_PCI: "PCIe to PCI bridge",
    PortType.PCI_TO_PCIE: "PCI to PCIe bridge",
    PortType.INTEGRATED_ENDPOINT: "root complex integrated endpoint",
    PortType.EVENT_COLLECTOR: "root complex event collector",
}
_WITHOUT_LINK = (PortType.INTEGRATED_ENDPOINT, PortType.EVENT_COLLECTOR)
_WITH_SLOT = (PortType.ROOT_PORT, PortType.DOWNSTREAM, PortType.PCI_TO_PCIE)
_ERRORS = ("correctable", "non-fatal", "fatal", "unsupported request")
_SPEEDS = ("", "2.5 GT/s", "5.0 GT/s", "8.0 GT/s", "16.0 GT/s", "32.0 GT/s", "64.0 GT/s")
_ASPM = ("L0s", "L1")
_SLOT_FEATURES = (
    "attention button",
    "power controller",
    "MRL sensor",
    "attention indicator",
    "power indicator",
    "surprise removal",
    "hot-plug",
)
_ATOMICS = {6: "routing", 7: "32 bits", 8: "64 bits", 9: "128 bits CAS"}


@dataclass(frozen=True, slots=True)
class ExpressDevice:
    """Device registers: the maximum payload and read request in bytes; ``flr`` is True if the function has a
    function level reset. ``errors`` are the errors detected since they were last cleared.
    """

    max_payload: int
    max_payload_supported: int
    max_read_request: int
    flr: bool
    extended_tags: bool
    relaxed_ordering: bool
    no_snoop: bool
    errors: tuple[str, ...]
    transactions_pending: bool

    @classmethod
    def read(cls, at: Reader) -> ExpressDevice:
        able, control, status = at.u32(4), at.u16(8), at.u16(10)
        return cls(
            max_payload=128 << (control >> 5 & 7),
            max_payload_supported=128 << (able & 7),
            max_read_request=128 << (control >> 12 & 7),
            flr=bool(able & 1 << 28),
            extended_tags=bool(control & 1 << 8),
            relaxed_ordering=bool(control & 1 << 4),
            no_snoop=bool(control & 1 << 11),
            errors=names_of(status, _ERRORS),
            transactions_pending=bool(status & 1 << 5),
        )


@dataclass(frozen=True, slots=True)
class ExpressLink:
    """Link registers: current and maximum speed and width. A speed without a defined meaning is ``unknown``.

    ``active`` is ``None`` if the port does not report it.
    """

    speed: str
    width: int
    max_speed: str
    max_width: int
    port: int
    aspm: tuple[str, ...]
    aspm_supported: tuple[str, ...]
    disabled: bool
    training: bool
    active: bool | None

    @classmethod
    def read(cls, at: Reader) -> ExpressLink:
        able, control, status = at.u32(12), at.u16(16), at.u16(18)
        return cls(
            speed=_speed(status & 0xF),
            width=status >> 4 & 0x3F,
            max_speed=_speed(able & 0xF),
            max_width=able >> 4 & 0x3F,
            port=able >> 24,
            aspm=names_of(control, _ASPM),
            aspm_supported=names_of(able >> 10, _ASPM),
            disabled=bool(control & 1 << 4),
            training=bool(status & 1 << 11),
            active=bool(status & 1 << 13) if able & 1 << 20 else None,
        )


@dataclass(frozen=True, slots=True)
class ExpressSlot:
    """Slot registers of a port: the slot's number, its features, and whether a card is present."""

    number: int
    features: tuple[str, ...]
    card_present: bool

    @classmethod
    def read(cls, at: Reader) -> ExpressSlot:
        able, status = at.u32(20), at.u16(26)
        return cls(able >> 19, names_of(able, _SLOT_FEATURES), bool(status & 1 << 6))


@dataclass(frozen=True, slots=True)
class ExpressDevice2:
    """Device registers 2, since version 2: atomic operations, LTR, ARI forwarding."""

    atomics: tuple[str, ...]
    atomics_enabled: bool
    ltr: bool
    ltr_enabled: bool
    ari_forwarding: bool
    ari_forwarding_enabled: bool

    @classmethod
    def read(cls, at: Reader) -> ExpressDevice2:
        able, control = at.u32(36), at.u16(40)
        return cls(
            atomics=tuple(name for number, name in _ATOMICS.items() if able >> number & 1),
            atomics_enabled=bool(control & 1 << 6),
            ltr=bool(able & 1 << 11),
            ltr_enabled=bool(control & 1 << 10),
            ari_forwarding=bool(able & 1 << 5),
            ari_forwarding_enabled=bool(control & 1 << 5),
        )


@dataclass(frozen=True, slots=True)
class Express:
    """PCI Express: ``type`` is a ``PortType`` or an undefined number, and ``type_name`` its name.

    Each of the other parts is ``None`` if this type of function lacks it, or if it is truncated.
    """

    version: int
    type: int
    type_name: str
    device: ExpressDevice | None
    link: ExpressLink | None
    slot: ExpressSlot | None
    device2: ExpressDevice2 | None

    @classmethod
    def read(cls, at: Reader) -> Express:
        flags, kind = at.u16(2), read_port_type(at)
        version = flags & 0xF
        has_slot = bool(flags & 1 << 8) and kind in _WITH_SLOT
        return cls(
            version=version,
            type=kind,
            type_name=_TYPE_NAMES.get(kind, f"type {kind}"),
            device=_if_there(ExpressDevice.read, at),
            link=None if kind in _WITHOUT_LINK else _if_there(ExpressLink.read, at),
            slot=_if_there(ExpressSlot.read, at) if has_slot else None,
            device2=_if_there(ExpressDevice2.read, at) if version > 1 else None,
        )


def _if_there(read: Callable[[Reader], T], at: Reader) -> T | None:
    try:
        return read(at)
    except CutOffError:
        return None


def _speed(number: int) -> str:
    return _SPEEDS[number] if 0 < number < len(_SPEEDS) else "unknown"
