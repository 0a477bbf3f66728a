"""The slot and root registers of PCI Express ports.

Source: PCI Express Base sections 7.5.3.9 to 7.5.3.14.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capabilities.express_device import power_limit_mw
from vfiotool.pci.capability_reader import Reader, bits, flag, name_of, names_of

_FEATURES = (
    "attention button",
    "power controller",
    "MRL sensor",
    "attention indicator",
    "power indicator",
    "surprise removal",
    "hot-plug",
)
_NOTIFICATIONS = (
    "attention button", "power fault", "MRL sensor", "presence", "command completed", "hot-plug interrupt",
    "", "", "", "", "", "", "link state",
)  # fmt: skip
_STATUS = (
    "attention button pressed", "power fault", "MRL sensor changed", "presence changed", "command completed",
    "MRL open", "card present", "interlock engaged", "link state changed",
)  # fmt: skip
_INDICATORS = ("", "on", "blink", "off")
_SYSTEM_ERRORS = ("correctable", "non-fatal", "fatal")


@dataclass(frozen=True, slots=True)
class ExpressSlot:
    """Slot registers of a port: the slot's number, its features, and whether a card is present.

    ``power_limit_mw`` is ``None`` above 600 W. ``notifications_enabled`` are the events that the port
    reports, and ``status`` are the events and states that are there. ``power_off`` is the setting of the
    power controller.
    """

    number: int
    features: tuple[str, ...]
    card_present: bool
    power_limit_mw: int | None
    interlock: bool
    no_command_completed: bool
    notifications_enabled: tuple[str, ...]
    attention_indicator: str
    power_indicator: str
    power_off: bool
    interlock_control: bool
    status: tuple[str, ...]

    @classmethod
    def read(cls, at: Reader) -> ExpressSlot:
        able, control, status = at.u32(20), at.u16(24), at.u16(26)
        return cls(
            number=bits(able, 19, 13),
            features=names_of(able, _FEATURES),
            card_present=flag(status, 6),
            power_limit_mw=power_limit_mw(bits(able, 7, 8), bits(able, 15, 2)),
            interlock=flag(able, 17),
            no_command_completed=flag(able, 18),
            notifications_enabled=names_of(control, _NOTIFICATIONS),
            attention_indicator=name_of(bits(control, 6, 2), _INDICATORS),
            power_indicator=name_of(bits(control, 8, 2), _INDICATORS),
            power_off=flag(control, 10),
            interlock_control=flag(control, 11),
            status=names_of(status, _STATUS),
        )


@dataclass(frozen=True, slots=True)
class ExpressRoot:
    """Root registers of a root port or an event collector: what becomes a system error, and wake-ups.

    ``crs_visible`` is the support for configuration retries that software sees.
    """

    system_errors_enabled: tuple[str, ...]
    pme_interrupt_enabled: bool
    crs_visible: bool
    crs_visible_enabled: bool
    pme_requester_id: int
    pme_status: bool
    pme_pending: bool

    @classmethod
    def read(cls, at: Reader) -> ExpressRoot:
        control, able, status = at.u16(28), at.u16(30), at.u32(32)
        return cls(
            system_errors_enabled=names_of(control, _SYSTEM_ERRORS),
            pme_interrupt_enabled=flag(control, 3),
            crs_visible=flag(able, 0),
            crs_visible_enabled=flag(control, 4),
            pme_requester_id=bits(status, 0, 16),
            pme_status=flag(status, 16),
            pme_pending=flag(status, 17),
        )
