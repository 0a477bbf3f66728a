"""The Enhanced Allocation capability: resources of a function at fixed places, in the stead of BARs.

Source: PCI Express Base section 7.8.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import CutOffError, Reader, bits, flag
from vfiotool.pci.config_space import header_type

_BRIDGE = 1
_PLACES = (
    *(f"BAR {number}" for number in range(6)),
    "behind the bridge",
    "not indicated",
    "expansion ROM",
    *(f"VF BAR {number}" for number in range(6)),
    "reserved",
)
_PROPERTIES = {
    0x00: "memory",
    0x01: "prefetchable memory",
    0x02: "I/O",
    0x03: "prefetchable memory of VFs",
    0x04: "memory of VFs",
    0x05: "memory behind the bridge",
    0x06: "prefetchable memory behind the bridge",
    0x07: "I/O behind the bridge",
    0xFD: "unavailable memory",
    0xFE: "unavailable I/O",
    0xFF: "unavailable",
}


@dataclass(frozen=True, slots=True)
class AllocatedRange:
    """A resource: its address on the bus, and the offset of its last byte; ``size`` is of the entry, in words
    of four bytes. Address and offset are ``None`` if the entry is too short for them.
    """

    enabled: bool
    writable: bool
    size: int
    equivalent: str
    primary_properties: str
    secondary_properties: str
    base_address: int | None
    max_offset: int | None

    @classmethod
    def read(cls, at: Reader) -> AllocatedRange:
        header = at.u32(0)
        size = bits(header, 0, 3)
        base, max_offset = _bounds([at.u32(4 + 4 * number) for number in range(size)])
        return cls(
            enabled=flag(header, 31),
            writable=flag(header, 30),
            size=size,
            equivalent=_PLACES[bits(header, 4, 4)],
            primary_properties=_properties(bits(header, 8, 8)),
            secondary_properties=_properties(bits(header, 16, 8)),
            base_address=base,
            max_offset=max_offset,
        )


@dataclass(frozen=True, slots=True)
class EnhancedAllocation:
    """Enhanced Allocation: ``count`` entries, of which ``entries`` has those that lie inside the space.

    A bridge has the numbers of its buses, too; they are ``None`` for other functions.
    """

    count: int
    secondary_bus: int | None
    subordinate_bus: int | None
    entries: tuple[AllocatedRange, ...]

    @classmethod
    def read(cls, at: Reader) -> EnhancedAllocation:
        is_bridge = header_type(at.config) == _BRIDGE
        count = bits(at.u8(2), 0, 6)
        return cls(
            count=count,
            secondary_bus=at.u8(4) if is_bridge else None,
            subordinate_bus=at.u8(5) if is_bridge else None,
            entries=_entries(at, 8 if is_bridge else 4, count),
        )


def _entries(at: Reader, first: int, count: int) -> tuple[AllocatedRange, ...]:
    found: list[AllocatedRange] = []
    offset = first
    for _ in range(count):
        try:
            found.append(AllocatedRange.read(at.block(offset)))
        except CutOffError:
            break
        offset += 4 + 4 * found[-1].size
    return tuple(found)


def _bounds(words: list[int]) -> tuple[int | None, int | None]:
    """Return the address and the last offset: two words, then an upper half for each whose bit 1 is set."""
    if len(words) < 2:
        return None, None
    (base, max_offset), uppers = words[:2], words[2:]
    whole: list[int | None] = []
    for low, filled in ((base, base & ~3), (max_offset, max_offset | 3)):
        if not low & 2:
            whole.append(filled)
        else:
            whole.append(uppers.pop(0) << 32 | filled if uppers else None)
    return whole[0], whole[1]


def _properties(number: int) -> str:
    return _PROPERTIES.get(number, f"reserved {number:#04x}")
