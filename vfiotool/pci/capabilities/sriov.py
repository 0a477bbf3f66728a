"""SR-IOV.

Source: PCI Express Base section 9.3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag

_PAGE = 4096
_MOST_BARS = 6
_BARS = 36
_MEMORY64 = 2
_ONES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class VfBar:
    """A BAR of all VFs: the address of the first VF's, as the register has it."""

    index: int
    address: int
    type: str
    prefetchable: bool


@dataclass(frozen=True, slots=True)
class Sriov:
    """SR-IOV: VF ``n``, from 0, has routing-ID PF + ``first_vf_offset`` + n * ``vf_stride``.

    ``page_sizes`` and ``page_size`` are in bytes; ``vf_bars`` are the six 32-bit registers, and ``bars``
    those that are not zero, decoded. ``vf_migration_*`` is the migration of SR-IOV 1.0; ``migration_bar`` and
    ``migration_offset`` (bytes) tell where its states are.
    """

    enabled: bool
    memory_enabled: bool
    ari_hierarchy: bool
    initial_vfs: int
    total_vfs: int
    num_vfs: int
    dependency_link: int
    first_vf_offset: int
    vf_stride: int
    vf_device_id: int
    page_sizes: tuple[int, ...]
    page_size: int
    vf_bars: tuple[int, ...]
    vf_migration: bool
    vf_tag_requester_10bit: bool
    interrupt_message: int
    vf_migration_enabled: bool
    vf_migration_interrupt_enabled: bool
    vf_tag_requester_10bit_enabled: bool
    vf_migration_status: bool
    migration_bar: int
    migration_offset: int
    bars: tuple[VfBar, ...]

    @classmethod
    def read(cls, at: Reader) -> Sriov:
        able, control, sizes, states = at.u32(4), at.u16(8), at.u32(28), at.u32(60)
        vf_bars = tuple(at.u32(_BARS + 4 * number) for number in range(_MOST_BARS))
        return cls(
            enabled=bool(control & 1),
            memory_enabled=bool(control & 1 << 3),
            ari_hierarchy=bool(control & 1 << 4),
            initial_vfs=at.u16(12),
            total_vfs=at.u16(14),
            num_vfs=at.u16(16),
            dependency_link=at.u8(18),
            first_vf_offset=at.u16(20),
            vf_stride=at.u16(22),
            vf_device_id=at.u16(26),
            page_sizes=tuple(_PAGE << number for number in range(32) if sizes >> number & 1),
            page_size=_PAGE * at.u32(32),
            vf_bars=vf_bars,
            vf_migration=flag(able, 0),
            vf_tag_requester_10bit=flag(able, 2),
            interrupt_message=bits(able, 21, 11),
            vf_migration_enabled=flag(control, 1),
            vf_migration_interrupt_enabled=flag(control, 2),
            vf_tag_requester_10bit_enabled=flag(control, 5),
            vf_migration_status=flag(at.u16(10), 0),
            migration_bar=bits(states, 0, 3),
            migration_offset=states & ~7,
            bars=_bars(vf_bars),
        )


def _bars(registers: tuple[int, ...]) -> tuple[VfBar, ...]:
    """Decode the BARs: a 64-bit BAR has the next register, too."""
    found: list[VfBar] = []
    index = 0
    while index < len(registers):
        low = registers[index]
        wide = bits(low, 1, 2) == _MEMORY64 and low != _ONES
        upper = registers[index + 1] if wide and index + 1 < len(registers) else 0
        if low not in (0, _ONES):
            address = upper << 32 | low & ~0xF
            found.append(VfBar(index, address, "memory64" if wide else "memory32", flag(low, 3)))
        index += 2 if wide else 1
    return tuple(found)
