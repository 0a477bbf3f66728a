"""The extended capabilities of a device as a whole: serial number, enclosure, blocks of registers.

Source: PCI Express Base sections 7.9.3, 7.9.20 and 7.9.27; include/uapi/linux/pci_regs.h for NPEM.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, names_of, read_blocks

_INDICATIONS = (
    "", "reset", "ok", "locate", "fail", "rebuild", "predicted failure", "hot spare", "in critical array",
    "in failed array", "invalid device type", "disabled", *[""] * 12,
    *(f"enclosure specific {number}" for number in range(8)),
)  # fmt: skip
_BLOCK_IDS = {0: "empty", 1: "MCAP", 0xFF: "MDVS"}
_LOCATORS = 8
_LOCATOR_SIZE = 8
_OFFSET_MASK = ~0xFFFF


@dataclass(frozen=True, slots=True)
class SerialNumber:
    """Device Serial Number, most significant byte first."""

    serial: str

    @classmethod
    def read(cls, at: Reader) -> SerialNumber:
        return cls((at.u32(8) << 32 | at.u32(4)).to_bytes(8, "big").hex("-"))


@dataclass(frozen=True, slots=True)
class EnclosureManagement:
    """Native PCIe Enclosure Management: the indications (lights) that exist, and those that are on."""

    capable: bool
    indications: tuple[str, ...]
    enabled: bool
    indicated: tuple[str, ...]
    command_completed: bool

    @classmethod
    def read(cls, at: Reader) -> EnclosureManagement:
        able, control, status = at.u32(4), at.u32(8), at.u32(12)
        return cls(
            capable=flag(able, 0),
            indications=names_of(able, _INDICATIONS),
            enabled=flag(control, 0),
            indicated=names_of(control, _INDICATIONS),
            command_completed=flag(status, 0),
        )


@dataclass(frozen=True, slots=True)
class RegisterLocator:
    """A block of registers: the BAR, and the offset in it in bytes."""

    bar: int
    block: str
    offset: int

    @classmethod
    def read(cls, at: Reader) -> RegisterLocator:
        low = at.u32(0)
        number = bits(low, 8, 8)
        return cls(
            bar=bits(low, 0, 3),
            block=_BLOCK_IDS.get(number, f"reserved {number}"),
            offset=at.u32(4) << 32 | low & _OFFSET_MASK,
        )


@dataclass(frozen=True, slots=True)
class RegisterLocators:
    """MMIO Register Block Locator: where the function has blocks of registers.

    ``locators`` is shorter than the register's length if the others are cut off.
    """

    locators: tuple[RegisterLocator, ...]

    @classmethod
    def read(cls, at: Reader) -> RegisterLocators:
        count = max(at.u16(4) // _LOCATOR_SIZE - 1, 0)
        return cls(read_blocks(RegisterLocator.read, at, first=_LOCATORS, size=_LOCATOR_SIZE, count=count))
