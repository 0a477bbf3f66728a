"""The standard capabilities of most functions: power, interrupts, the board of a bridge, and resets.

Source: PCI Local Bus 3.0 section 6.8, PCI Power Management 1.2 section 3.2, PCI Express Base sections 7.5.2
and 7.7; include/uapi/linux/pci_regs.h has the offsets and masks.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, names_of

_POWER_STATES = ("D0", "D1", "D2", "D3hot")
_PME_STATES = (*_POWER_STATES, "D3cold")
_AUX_CURRENTS_MA = (0, 55, 100, 160, 220, 270, 320, 375)


@dataclass(frozen=True, slots=True)
class PowerManagement:
    """Power Management: the current state, the supported states, and the states that can signal a wake-up.

    ``aux_current_ma`` is what a wake-up from D3cold takes. ``dsi`` is True if a driver must initialize the
    device after a change of its state. ``data`` is a register that reports power: ``data_select`` chooses
    which, and ``data_scale`` its unit. ``bus_power_managed`` and ``b2_b3`` are of bridges: the bus below
    follows the bridge, and goes to B2, not to B3, with D3hot.
    """

    version: int
    state: str
    has_d1: bool
    has_d2: bool
    no_soft_reset: bool
    pme_from: tuple[str, ...]
    pme_enabled: bool
    pme_status: bool
    pme_clock: bool
    dsi: bool
    aux_current_ma: int
    data_select: int
    data_scale: int
    data: int
    bus_power_managed: bool
    b2_b3: bool

    @classmethod
    def read(cls, at: Reader) -> PowerManagement:
        able, status, bridge = at.u16(2), at.u16(4), at.u8(6)
        return cls(
            version=bits(able, 0, 3),
            state=_POWER_STATES[bits(status, 0, 2)],
            has_d1=flag(able, 9),
            has_d2=flag(able, 10),
            no_soft_reset=flag(status, 3),
            pme_from=names_of(able >> 11, _PME_STATES),
            pme_enabled=flag(status, 8),
            pme_status=flag(status, 15),
            pme_clock=flag(able, 3),
            dsi=flag(able, 5),
            aux_current_ma=_AUX_CURRENTS_MA[bits(able, 6, 3)],
            data_select=bits(status, 9, 4),
            data_scale=bits(status, 13, 2),
            data=at.u8(7),
            bus_power_managed=flag(bridge, 7),
            b2_b3=flag(bridge, 6),
        )


@dataclass(frozen=True, slots=True)
class Msi:
    """MSI: if enabled, ``count`` of ``max_count`` vectors are in use.

    ``mask`` and ``pending`` have a bit for each vector, and are ``None`` if vectors cannot be masked.
    """

    enabled: bool
    count: int
    max_count: int
    is_64bit: bool
    maskable: bool
    address: int
    data: int
    mask: int | None
    pending: int | None

    @classmethod
    def read(cls, at: Reader) -> Msi:
        control = at.u16(2)
        is_64bit, maskable = bool(control & 1 << 7), bool(control & 1 << 8)
        upper, data_at = (at.u32(8), 12) if is_64bit else (0, 8)
        return cls(
            enabled=bool(control & 1),
            count=1 << (control >> 4 & 7),
            max_count=1 << (control >> 1 & 7),
            is_64bit=is_64bit,
            maskable=maskable,
            address=upper << 32 | at.u32(4),
            data=at.u16(data_at),
            mask=at.u32(data_at + 4) if maskable else None,
            pending=at.u32(data_at + 8) if maskable else None,
        )


@dataclass(frozen=True, slots=True)
class MsiX:
    """MSI-X: the number of vectors, the places of table and pending bits; offsets and sizes in bytes."""

    enabled: bool
    masked: bool
    count: int
    table_bar: int
    table_offset: int
    table_size: int
    pba_bar: int
    pba_offset: int
    pba_size: int

    @classmethod
    def read(cls, at: Reader) -> MsiX:
        control, table, pba = at.u16(2), at.u32(4), at.u32(8)
        count = (control & 0x7FF) + 1
        return cls(
            enabled=bool(control & 1 << 15),
            masked=bool(control & 1 << 14),
            count=count,
            table_bar=table & 7,
            table_offset=table & ~7,
            table_size=16 * count,
            pba_bar=pba & 7,
            pba_offset=pba & ~7,
            pba_size=(count + 63) // 64 * 8,
        )


@dataclass(frozen=True, slots=True)
class BridgeSubsystem:
    """Bridge Subsystem Vendor: the vendor and the id of the board of a bridge."""

    vendor_id: int
    device_id: int

    @classmethod
    def read(cls, at: Reader) -> BridgeSubsystem:
        return cls(at.u16(4), at.u16(6))


@dataclass(frozen=True, slots=True)
class AdvancedFeatures:
    """Advanced Features: the function level reset of conventional PCI.

    ``transactions_pending`` means something only with ``transactions_pending_capable``.
    """

    flr: bool
    transactions_pending: bool
    transactions_pending_capable: bool
    initiate_flr: bool

    @classmethod
    def read(cls, at: Reader) -> AdvancedFeatures:
        able, control, status = at.u8(3), at.u8(4), at.u8(5)
        return cls(flag(able, 1), flag(status, 0), flag(able, 0), flag(control, 0))
