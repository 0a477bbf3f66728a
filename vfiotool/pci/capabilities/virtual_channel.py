"""Virtual channels, of a link and of a device with several functions.

Source: PCI Express Base sections 7.9.1 and 7.9.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, name_of, names_of, read_blocks

_CLOCKS = ("100 ns",)
_ARBITRATIONS = ("fixed", "WRR32", "WRR64", "WRR128", *(f"reserved {number}" for number in range(4, 8)))
_RESOURCE_ARBITRATIONS = (
    "fixed",
    "WRR32",
    "WRR64",
    "WRR128",
    "TWRR128",
    "WRR256",
    "reserved 6",
    "reserved 7",
)
_TABLE_UNIT = 16


@dataclass(frozen=True, slots=True)
class VirtualChannelResource:
    """A virtual channel: ``tc_map`` has a bit for each traffic class that uses it.

    ``arbitration_table`` is the offset of its table from the capability in bytes, 0 without a table.
    """

    arbitrations: tuple[str, ...]
    reject_snoop: bool
    max_time_slots: int
    arbitration_table: int
    enabled: bool
    id: int
    arbitration: str
    tc_map: int
    negotiation_pending: bool
    table_load_pending: bool

    @classmethod
    def read(cls, at: Reader) -> VirtualChannelResource:
        able, control, status = at.u32(0), at.u32(4), at.u16(10)
        return cls(
            arbitrations=names_of(bits(able, 0, 8), _RESOURCE_ARBITRATIONS),
            reject_snoop=flag(able, 15),
            max_time_slots=bits(able, 16, 7) + 1,
            arbitration_table=_TABLE_UNIT * bits(able, 24, 8),
            enabled=flag(control, 31),
            id=bits(control, 24, 3),
            arbitration=name_of(bits(control, 17, 3), _RESOURCE_ARBITRATIONS),
            tc_map=bits(control, 0, 8),
            negotiation_pending=flag(status, 1),
            table_load_pending=flag(status, 0),
        )


@dataclass(frozen=True, slots=True)
class VirtualChannel:
    """Virtual Channel, and Multi-Function Virtual Channel: ``resources`` are the channels, VC0 first.

    ``low_priority_extended_vcs`` is the number of channels besides VC0 that share the lower priority.
    ``arbitration_table`` is the offset of its table from the capability in bytes, 0 without a table.
    ``resources`` has fewer channels than ``extended_vcs`` + 1 if the others are cut off.
    """

    extended_vcs: int
    low_priority_extended_vcs: int
    reference_clock: str
    arbitration_table_entry_bits: int
    arbitrations: tuple[str, ...]
    arbitration_table: int
    arbitration: str
    table_load_pending: bool
    resources: tuple[VirtualChannelResource, ...]

    @classmethod
    def read(cls, at: Reader) -> VirtualChannel:
        able, able2 = at.u32(4), at.u32(8)
        extended = bits(able, 0, 3)
        return cls(
            extended_vcs=extended,
            low_priority_extended_vcs=bits(able, 4, 3),
            reference_clock=name_of(bits(able, 8, 2), _CLOCKS),
            arbitration_table_entry_bits=1 << bits(able, 10, 2),
            arbitrations=names_of(bits(able2, 0, 8), _ARBITRATIONS),
            arbitration_table=_TABLE_UNIT * bits(able2, 24, 8),
            arbitration=name_of(bits(at.u16(12), 1, 3), _ARBITRATIONS),
            table_load_pending=flag(at.u16(14), 0),
            resources=read_blocks(VirtualChannelResource.read, at, first=16, size=12, count=extended + 1),
        )
