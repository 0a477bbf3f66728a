"""The extended capabilities of a link: equalization at each speed, lane margining, features of the data link.

Source: PCI Express Base sections 7.7.3 to 7.7.8.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.acs import WITHOUT_LINK, port_type
from vfiotool.pci.capability_reader import (
    Reader,
    bits,
    find_reader,
    flag,
    if_complete,
    name_of,
    names_of,
    read_blocks,
)

_EXPRESS = 0x10
_LINK_CAPABILITIES = 12
_MOST_LANES = 32
_MODIFIED_TS_MODES = ("PCI Express", "training set messages", "alternate protocol negotiation")
_LINK_BEHAVIORS = (
    "full equalization",
    "equalization bypass to highest rate",
    "no equalization needed",
    "modified TS1/TS2 ordered sets",
)
_DATA_LINK_FEATURES = ("scaled flow control", "immediate readiness")


@dataclass(frozen=True, slots=True)
class LaneEqualization:
    """Presets of a lane at 8 GT/s: of the downstream port and of the upstream port."""

    downstream_tx_preset: int
    downstream_rx_preset_hint: int
    upstream_tx_preset: int
    upstream_rx_preset_hint: int

    @classmethod
    def read(cls, at: Reader) -> LaneEqualization:
        value = at.u16(0)
        return cls(bits(value, 0, 4), bits(value, 4, 3), bits(value, 8, 4), bits(value, 12, 3))


@dataclass(frozen=True, slots=True)
class LanePresets:
    """Transmitter presets of a lane above 8 GT/s: of the downstream port and of the upstream port."""

    downstream_tx_preset: int
    upstream_tx_preset: int

    @classmethod
    def read(cls, at: Reader) -> LanePresets:
        value = at.u8(0)
        return cls(bits(value, 0, 4), bits(value, 4, 4))


@dataclass(frozen=True, slots=True)
class SecondaryExpress:
    """Secondary PCI Express: equalization at 8 GT/s. ``lane_errors`` are the numbers of lanes with an error.

    ``lanes`` has an entry for each lane of the maximum link width.
    """

    perform_equalization: bool
    equalization_interrupt_enabled: bool
    lane_errors: tuple[int, ...]
    lanes: tuple[LaneEqualization, ...]

    @classmethod
    def read(cls, at: Reader) -> SecondaryExpress:
        control = at.u32(4)
        return cls(
            perform_equalization=flag(control, 0),
            equalization_interrupt_enabled=flag(control, 1),
            lane_errors=_lanes_of(at.u32(8)),
            lanes=read_blocks(LaneEqualization.read, at, first=12, size=2, count=_lane_count(at)),
        )


@dataclass(frozen=True, slots=True)
class EqualizationStatus:
    """The state of the equalization at one speed: what succeeded, and whether a new one is requested."""

    complete: bool
    phase1: bool
    phase2: bool
    phase3: bool
    requested: bool

    @classmethod
    def read(cls, at: Reader) -> EqualizationStatus:
        status = at.u32(12)
        return cls(*(flag(status, number) for number in range(5)))


@dataclass(frozen=True, slots=True)
class PhysicalLayer16:
    """Physical Layer 16.0 GT/s: parity mismatches by the numbers of lanes, and the presets of each lane."""

    equalization: EqualizationStatus
    local_parity_mismatches: tuple[int, ...]
    first_retimer_parity_mismatches: tuple[int, ...]
    second_retimer_parity_mismatches: tuple[int, ...]
    lanes: tuple[LanePresets, ...]

    @classmethod
    def read(cls, at: Reader) -> PhysicalLayer16:
        return cls(
            equalization=EqualizationStatus.read(at),
            local_parity_mismatches=_lanes_of(at.u32(16)),
            first_retimer_parity_mismatches=_lanes_of(at.u32(20)),
            second_retimer_parity_mismatches=_lanes_of(at.u32(24)),
            lanes=read_blocks(LanePresets.read, at, first=32, size=1, count=_lane_count(at)),
        )


@dataclass(frozen=True, slots=True)
class PhysicalLayer32:
    """Physical Layer 32.0 GT/s: how the link may skip equalization, and what it has done.

    ``modified_ts_modes`` are the supported usage modes of modified training sets, by number;
    ``modified_ts_mode`` is the selected mode. ``link_behavior`` is what the other end of the link asked for.
    """

    equalization_bypass: bool
    no_equalization_needed: bool
    modified_ts_modes: tuple[int, ...]
    equalization_bypass_disabled: bool
    no_equalization_needed_disabled: bool
    modified_ts_mode: str
    equalization: EqualizationStatus
    modified_ts_received: bool
    link_behavior: str
    tx_precoding_on: bool
    tx_precoding_requested: bool
    no_equalization_needed_received: bool
    lanes: tuple[LanePresets, ...]

    @classmethod
    def read(cls, at: Reader) -> PhysicalLayer32:
        able, control, status = at.u32(4), at.u32(8), at.u32(12)
        return cls(
            equalization_bypass=flag(able, 0),
            no_equalization_needed=flag(able, 1),
            modified_ts_modes=tuple(number for number in range(3) if flag(able, 8 + number)),
            equalization_bypass_disabled=flag(control, 0),
            no_equalization_needed_disabled=flag(control, 1),
            modified_ts_mode=name_of(bits(control, 8, 3), _MODIFIED_TS_MODES),
            equalization=EqualizationStatus.read(at),
            modified_ts_received=flag(status, 5),
            link_behavior=name_of(bits(status, 6, 2), _LINK_BEHAVIORS),
            tx_precoding_on=flag(status, 8),
            tx_precoding_requested=flag(status, 9),
            no_equalization_needed_received=flag(status, 10),
            lanes=read_blocks(LanePresets.read, at, first=32, size=1, count=_lane_count(at)),
        )


@dataclass(frozen=True, slots=True)
class PhysicalLayer64:
    """Physical Layer 64.0 GT/s: the equalization and the precoding of the transmitter."""

    equalization: EqualizationStatus
    tx_precoding_on: bool
    tx_precoding_requested: bool
    no_equalization_needed_received: bool

    @classmethod
    def read(cls, at: Reader) -> PhysicalLayer64:
        status = at.u32(12)
        return cls(EqualizationStatus.read(at), flag(status, 5), flag(status, 6), flag(status, 7))


@dataclass(frozen=True, slots=True)
class LaneMargining:
    """Lane Margining at the Receiver: whether software can use it, and whether that needs a driver."""

    uses_driver: bool
    ready: bool
    software_ready: bool

    @classmethod
    def read(cls, at: Reader) -> LaneMargining:
        able, status = at.u16(4), at.u16(6)
        return cls(flag(able, 0), flag(status, 0), flag(status, 1))


@dataclass(frozen=True, slots=True)
class DataLinkFeature:
    """Data Link Feature: the features of both ends of the link.

    ``remote_features`` count if ``remote_valid``.
    """

    local_features: tuple[str, ...]
    exchange_enabled: bool
    remote_features: tuple[str, ...]
    remote_valid: bool

    @classmethod
    def read(cls, at: Reader) -> DataLinkFeature:
        able, status = at.u32(4), at.u32(8)
        return cls(
            local_features=names_of(able, _DATA_LINK_FEATURES),
            exchange_enabled=flag(able, 31),
            remote_features=names_of(status, _DATA_LINK_FEATURES),
            remote_valid=flag(status, 31),
        )


def _lane_count(at: Reader) -> int:
    """Return the maximum link width of the function, limited to what a link can have."""
    express = find_reader(at.config, _EXPRESS, extended=False)
    if express is None or port_type(at.config) in WITHOUT_LINK:
        return 0
    return min(if_complete(_link_width, express) or 0, _MOST_LANES)


def _link_width(express: Reader) -> int:
    return bits(express.u32(_LINK_CAPABILITIES), 4, 6)


def _lanes_of(mask: int) -> tuple[int, ...]:
    return tuple(number for number in range(_MOST_LANES) if flag(mask, number))
