"""The extended capabilities for kinds of transactions: steering tags, time, data objects.

Source: PCI Express Base sections 7.9.13, 7.9.15 and 7.9.24.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, name_of

_TABLE_LOCATIONS = ("none", "capability", "MSI-X table")
_STEERING_MODES = ("no steering tags", "interrupt vector", "device specific")
_REQUESTERS = ("disabled", "TPH", "", "TPH and extended TPH")


@dataclass(frozen=True, slots=True)
class TphRequester:
    """TPH Requester: where the function has its table of steering tags, and how it chooses a tag.

    ``st_table_size`` is the number of tags, or ``None`` without a table.
    """

    no_st_mode: bool
    interrupt_vector_mode: bool
    device_specific_mode: bool
    extended_tph: bool
    st_table_location: str
    st_table_size: int | None
    st_mode: str
    requester: str

    @classmethod
    def read(cls, at: Reader) -> TphRequester:
        able, control = at.u32(4), at.u32(8)
        location = bits(able, 9, 2)
        return cls(
            no_st_mode=flag(able, 0),
            interrupt_vector_mode=flag(able, 1),
            device_specific_mode=flag(able, 2),
            extended_tph=flag(able, 8),
            st_table_location=name_of(location, _TABLE_LOCATIONS),
            st_table_size=bits(able, 16, 11) + 1 if location else None,
            st_mode=name_of(bits(control, 0, 3), _STEERING_MODES),
            requester=name_of(bits(control, 8, 2), _REQUESTERS),
        )


@dataclass(frozen=True, slots=True)
class PrecisionTimeMeasurement:
    """Precision Time Measurement: the roles of the function; granularities of the time in nanoseconds.

    A granularity of 0 is unknown, and 255 means more than 254.
    """

    requester: bool
    responder: bool
    root: bool
    clock_granularity_ns: int
    enabled: bool
    root_selected: bool
    effective_granularity_ns: int

    @classmethod
    def read(cls, at: Reader) -> PrecisionTimeMeasurement:
        able, control = at.u32(4), at.u32(8)
        return cls(
            requester=flag(able, 0),
            responder=flag(able, 1),
            root=flag(able, 2),
            clock_granularity_ns=bits(able, 8, 8),
            enabled=flag(control, 0),
            root_selected=flag(control, 1),
            effective_granularity_ns=bits(control, 8, 8),
        )


@dataclass(frozen=True, slots=True)
class DataObjectExchange:
    """Data Object Exchange: the state of the mailbox.

    ``interrupt_message`` is ``None`` if the mailbox has no interrupt.
    """

    interrupt_supported: bool
    interrupt_message: int | None
    interrupt_enabled: bool
    busy: bool
    interrupt_status: bool
    error: bool
    data_object_ready: bool

    @classmethod
    def read(cls, at: Reader) -> DataObjectExchange:
        able, control, status = at.u32(4), at.u32(8), at.u32(12)
        return cls(
            interrupt_supported=flag(able, 0),
            interrupt_message=bits(able, 1, 11) if flag(able, 0) else None,
            interrupt_enabled=flag(control, 1),
            busy=flag(status, 0),
            interrupt_status=flag(status, 1),
            error=flag(status, 2),
            data_object_ready=flag(status, 31),
        )
