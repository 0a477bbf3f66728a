"""The standard capabilities that few functions have: of slots, of host controllers, and Vital Product Data.

Source: PCI Local Bus 3.0 appendix I; PCI-to-PCI Bridge Architecture 1.2 chapter 13; CompactPCI Hot Swap 2.0;
PCI Standard Hot-Plug Controller 1.0; EHCI 1.0 appendix C; Serial ATA AHCI 1.3 section 2.4. Bits have their
names in include/uapi/linux/pci_regs.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, names_of

_FIRST_SATA_BAR, _LAST_SATA_BAR, _SATA_INLINE = 4, 9, 15
_HOT_SWAP = ("dha", "eim", "pie", "loo", "", "", "ext", "ins")


@dataclass(frozen=True, slots=True)
class VitalProductData:
    """Vital Product Data: the window to the data. The kernel reads all of them as the file ``vpd``.

    ``address`` is the byte that was last accessed, ``address_flag`` the direction or the end of the access,
    and ``data`` the four bytes.
    """

    address: int
    address_flag: bool
    data: int

    @classmethod
    def read(cls, at: Reader) -> VitalProductData:
        address = at.u16(2)
        return cls(bits(address, 0, 15), flag(address, 15), at.u32(4))


@dataclass(frozen=True, slots=True)
class SlotIdentification:
    """Slot Identification of a bridge to an expansion chassis: the number of its slots, and the chassis."""

    slots: int
    first_in_chassis: bool
    chassis: int

    @classmethod
    def read(cls, at: Reader) -> SlotIdentification:
        register = at.u8(2)
        return cls(bits(register, 0, 5), flag(register, 5), at.u8(3))


@dataclass(frozen=True, slots=True)
class HotSwap:
    """CompactPCI Hot Swap: the flags of its register, and the programming interface."""

    flags: tuple[str, ...]
    programming_interface: int

    @classmethod
    def read(cls, at: Reader) -> HotSwap:
        register = at.u8(2)
        return cls(names_of(register, _HOT_SWAP), bits(register, 4, 2))


@dataclass(frozen=True, slots=True)
class DebugPort:
    """Debug Port of a USB controller: ``offset`` in bytes, inside a BAR."""

    bar: int
    offset: int

    @classmethod
    def read(cls, at: Reader) -> DebugPort:
        register = at.u16(2)
        return cls(bits(register, 13, 3), bits(register, 0, 13))


@dataclass(frozen=True, slots=True)
class HotPlugController:
    """Hot-Plug Controller: the window to its registers; ``dword_select`` chooses which one ``data`` is."""

    dword_select: int
    data: int

    @classmethod
    def read(cls, at: Reader) -> HotPlugController:
        return cls(at.u8(2), at.u32(4))


@dataclass(frozen=True, slots=True)
class SataRegisters:
    """SATA: where the index and data registers lie, at ``offset`` bytes in a BAR, or in configuration space.

    ``bar`` and ``offset`` are ``None`` if the registers are in no BAR.
    """

    revision: str
    bar: int | None
    offset: int | None
    in_configuration_space: bool

    @classmethod
    def read(cls, at: Reader) -> SataRegisters:
        revision, place = at.u8(2), at.u32(4)
        number = bits(place, 0, 4)
        is_in_bar = _FIRST_SATA_BAR <= number <= _LAST_SATA_BAR
        return cls(
            revision=f"{revision >> 4}.{revision & 0xF}",
            bar=number - _FIRST_SATA_BAR if is_in_bar else None,
            offset=bits(place, 4, 20) * 4 if is_in_bar else None,
            in_configuration_space=number == _SATA_INLINE,
        )
