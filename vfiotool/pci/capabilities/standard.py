"""The standard capabilities of PCI, except PCI Express (see ``express``).

Source: PCI Local Bus 3.0 section 6.7 and appendix H, PCI Power Management 1.2 section 3.2, PCI Express Base
section 7.5.2, 7.7 and 7.9; include/uapi/linux/pci_regs.h has the offsets and masks.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, names_of

_POWER_STATES = ("D0", "D1", "D2", "D3hot")
_PME_STATES = (*_POWER_STATES, "D3cold")


@dataclass(frozen=True, slots=True)
class PowerManagement:
    """Power Management: the current state, the supported states, and the states that can signal a wake-up."""

    version: int
    state: str
    has_d1: bool
    has_d2: bool
    no_soft_reset: bool
    pme_from: tuple[str, ...]
    pme_enabled: bool
    pme_status: bool

    @classmethod
    def read(cls, at: Reader) -> PowerManagement:
        able, status = at.u16(2), at.u16(4)
        return cls(
            version=able & 7,
            state=_POWER_STATES[status & 3],
            has_d1=bool(able & 1 << 9),
            has_d2=bool(able & 1 << 10),
            no_soft_reset=bool(status & 1 << 3),
            pme_from=names_of(able >> 11, _PME_STATES),
            pme_enabled=bool(status & 1 << 8),
            pme_status=bool(status & 1 << 15),
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
class VendorSpecific:
    """Vendor Specific: ``length`` in bytes, with the header's three; ``data`` after them, in hexadecimal."""

    length: int
    data: str

    @classmethod
    def read(cls, at: Reader) -> VendorSpecific:
        length = at.u8(2)
        return cls(length, at.hex(3, length))


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
    """Advanced Features: the function level reset of conventional PCI."""

    flr: bool
    transactions_pending: bool

    @classmethod
    def read(cls, at: Reader) -> AdvancedFeatures:
        return cls(flr=bool(at.u8(3) & 1 << 1), transactions_pending=bool(at.u8(5) & 1))
