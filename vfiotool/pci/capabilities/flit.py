"""The extended capabilities of flit mode: Device 3, the log of errors, the injection of errors.

Source: PCI Express Base sections 7.7.9, 7.8.11 and 7.8.13.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, name_of, names_of

_LINK_WIDTHS = ("x1", "x2", "x4", "x8", "x16", "", "", "dynamic")
_LATENCIES = (
    "less than 1 us", "1 us to 2 us", "2 us to 4 us", "4 us to 8 us", "8 us to 16 us", "16 us to 32 us",
    "32 us to 64 us", "more than 64 us",
)  # fmt: skip
_GRANULARITIES = ("all lanes", "even lanes", "odd lanes", "mismatch")
_LANES = 16
_SPEEDS = ("2.5 GT/s", "5.0 GT/s", "8.0 GT/s", "16.0 GT/s", "32.0 GT/s", "64.0 GT/s")
_FLIT_TYPES = (
    "any", "any but idle", "payload", "NOP", "idle", "payload with a sequence number",
    "payload with one sequence number",
)  # fmt: skip
_ERROR_TYPES = ("random", "correctable, one group", "correctable, three groups", "uncorrectable")
_INJECTION_STATES = ("not started", "started", "completed", "error")
_ORDERED_SETS = (
    "TS0", "TS1", "TS2", "SKP", "EIEOS", "EIOS", "SDS", "polling", "configuration", "L0",
    "recovery without equalization", "equalization phase 0 or 1", "equalization phase 2",
    "equalization phase 3",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Device3:
    """Device 3: deferrable memory writes (``dmwr``), 14-bit tags, L0p (fewer active lanes), UIO.

    Without ``l0p`` the exit latencies are ``None``. ``segment_captured`` is True in flit mode from end to
    end.
    """

    dmwr_routing: bool
    tag_completer_14bit: bool
    tag_requester_14bit: bool
    l0p: bool
    port_l0p_exit_latency: str | None
    retimer_l0p_exit_latency: str | None
    uio_completer: bool
    uio_requester: bool
    dmwr_requester_enabled: bool
    dmwr_egress_blocking: bool
    tag_requester_14bit_enabled: bool
    l0p_enabled: bool
    target_link_width: str
    uio_requester_enabled: bool
    uio_256b_boundary_disabled: bool
    initial_link_width: str
    segment_captured: bool
    remote_l0p: bool

    @classmethod
    def read(cls, at: Reader) -> Device3:
        able, control, status = at.u32(4), at.u16(8), at.u32(12)
        l0p = flag(able, 3)
        return cls(
            dmwr_routing=flag(able, 0),
            tag_completer_14bit=flag(able, 1),
            tag_requester_14bit=flag(able, 2),
            l0p=l0p,
            port_l0p_exit_latency=_LATENCIES[bits(able, 4, 3)] if l0p else None,
            retimer_l0p_exit_latency=_LATENCIES[bits(able, 7, 3)] if l0p else None,
            uio_completer=flag(able, 10),
            uio_requester=flag(able, 11),
            dmwr_requester_enabled=flag(control, 0),
            dmwr_egress_blocking=flag(control, 1),
            tag_requester_14bit_enabled=flag(control, 2),
            l0p_enabled=flag(control, 3),
            target_link_width=name_of(bits(control, 4, 3), _LINK_WIDTHS),
            uio_requester_enabled=flag(control, 7),
            uio_256b_boundary_disabled=flag(control, 8),
            initial_link_width=name_of(bits(status, 0, 3), _LINK_WIDTHS),
            segment_captured=flag(status, 3),
            remote_l0p=flag(status, 4),
        )


@dataclass(frozen=True, slots=True)
class FlitLogging:
    """Flit Logging: the first logged error, the counter of errors, and the measurement of bit errors.

    The syndromes are those of the three groups of the error correction. ``lane_errors`` are the measured bit
    errors of lanes 0 to 15.
    """

    valid: bool
    link_width: str
    more_entries: bool
    unrecognized: bool
    fec_uncorrectable: bool
    parity_syndromes: tuple[int, int, int]
    check_syndromes: tuple[int, int, int]
    counter_enabled: bool
    counter_interrupt_enabled: bool
    counted_events: int
    trigger_count: int
    counter_link_width: str
    counter_interrupt_generated: bool
    counter: int
    measurement_enabled: bool
    measurement_granularity: str
    flit_counter: int
    invalid_flit_counter: int
    lane_errors: tuple[int, ...]

    @classmethod
    def read(cls, at: Reader) -> FlitLogging:
        log, log2, control, status, measurement = at.u32(4), at.u32(8), at.u16(12), at.u16(14), at.u32(16)
        return cls(
            valid=flag(log, 0),
            link_width=name_of(bits(log, 1, 3), _LINK_WIDTHS),
            more_entries=flag(log, 13),
            unrecognized=flag(log, 14),
            fec_uncorrectable=flag(log, 15),
            parity_syndromes=(bits(log, 16, 8), bits(log2, 0, 8), bits(log2, 16, 8)),
            check_syndromes=(bits(log, 24, 8), bits(log2, 8, 8), bits(log2, 24, 8)),
            counter_enabled=flag(control, 0),
            counter_interrupt_enabled=flag(control, 1),
            counted_events=bits(control, 2, 2),
            trigger_count=bits(control, 4, 8),
            counter_link_width=name_of(bits(status, 0, 3), _LINK_WIDTHS),
            counter_interrupt_generated=flag(status, 3),
            counter=bits(status, 8, 8),
            measurement_enabled=flag(measurement, 0),
            measurement_granularity=name_of(bits(measurement, 2, 2), _GRANULARITIES),
            flit_counter=at.u32(20),
            invalid_flit_counter=at.u16(24),
            lane_errors=tuple(at.u16(28 + 2 * lane) for lane in range(_LANES)),
        )


@dataclass(frozen=True, slots=True)
class OrderedSetInjections:
    """The states of the injection of errors into each kind of ordered set, and in each state of the link."""

    ts0: str
    ts1: str
    ts2: str
    skp: str
    eieos: str
    eios: str
    sds: str
    polling: str
    configuration: str
    l0: str
    recovery: str
    equalization01: str
    equalization2: str
    equalization3: str

    @classmethod
    def read(cls, at: Reader) -> OrderedSetInjections:
        states = at.u32(0)
        return cls(
            *(name_of(bits(states, 2 * number, 2), _INJECTION_STATES) for number in range(len(_ORDERED_SETS)))
        )


@dataclass(frozen=True, slots=True)
class FlitErrorInjection:
    """Flit Error Injection: errors that software injects into flits and into ordered sets.

    ``error_count`` and ``error_spacing`` are in flits. ``consecutive`` is the register's code, and 7 means
    pseudo-random. ``ordered_sets`` are the ordered sets, and the states of the link, in which errors are
    injected, in the bytes and lanes of ``ordered_set_byte_mask`` and ``ordered_set_lane_mask``.
    """

    enabled: bool
    transmit: bool
    receive: bool
    speeds: tuple[str, ...]
    error_count: int
    error_spacing: int
    flit_type: str
    consecutive: int
    error_type: str
    error_offset: int
    error_magnitude: int
    transmit_state: str
    receive_state: str
    ordered_set_enabled: bool
    ordered_set_transmit: bool
    ordered_set_receive: bool
    ordered_sets: tuple[str, ...]
    ordered_set_byte_mask: int
    ordered_set_lane_mask: int
    ordered_set_transmit_states: OrderedSetInjections
    ordered_set_receive_states: OrderedSetInjections

    @classmethod
    def read(cls, at: Reader) -> FlitErrorInjection:
        control, control2, status, sets, mask = (at.u32(offset) for offset in (8, 12, 16, 20, 24))
        return cls(
            enabled=flag(control, 0),
            transmit=flag(control, 1),
            receive=flag(control, 2),
            speeds=names_of(bits(control, 6, 6), _SPEEDS),
            error_count=bits(control, 16, 5),
            error_spacing=bits(control, 21, 8),
            flit_type=name_of(bits(control, 29, 3), _FLIT_TYPES),
            consecutive=bits(control2, 0, 3),
            error_type=name_of(bits(control2, 3, 2), _ERROR_TYPES),
            error_offset=bits(control2, 5, 7),
            error_magnitude=bits(control2, 12, 8),
            transmit_state=name_of(bits(status, 0, 2), _INJECTION_STATES),
            receive_state=name_of(bits(status, 2, 2), _INJECTION_STATES),
            ordered_set_enabled=flag(sets, 0),
            ordered_set_transmit=flag(sets, 1),
            ordered_set_receive=flag(sets, 2),
            ordered_sets=names_of(sets >> 16, _ORDERED_SETS),
            ordered_set_byte_mask=bits(mask, 0, 16),
            ordered_set_lane_mask=bits(mask, 16, 16),
            ordered_set_transmit_states=OrderedSetInjections.read(at.block(28)),
            ordered_set_receive_states=OrderedSetInjections.read(at.block(32)),
        )
