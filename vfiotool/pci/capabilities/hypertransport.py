"""The HyperTransport capabilities: one id, and a type in its command register.

Source: HyperTransport I/O Link Specification 3.10 chapter 7. Fields that came with revision 1.02 are ``None``
or left out in a device of an older one.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, names_of

_SLAVE, _HOST, _MSI_MAPPING, _REVISION = "slave or primary", "host or secondary", "MSI mapping", "revision"
_INTERFACES = (_SLAVE, _HOST)  # of these, the type has three bits
_TYPES = {
    0x08: "switch",
    0x10: "interrupt discovery and configuration",
    0x11: _REVISION,
    0x12: "unit id clumping",
    0x13: "extended configuration space access",
    0x14: "address mapping",
    0x15: _MSI_MAPPING,
    0x16: "direct route",
    0x17: "VCSet",
    0x18: "retry mode",
    0x19: "X86",
    0x1A: "generation 3",
    0x1C: "power management",
}
_REVISION_1_02 = 0x22
_FIXED_ADDRESS = 0xFEE0_0000
_WIDTHS = ("8 bits", "16 bits", "reserved 2", "32 bits", "2 bits", "4 bits", "reserved 6", "not connected")
_CONTROL = (
    "", "CRC flood enabled", "CRC start test", "CRC force error", "link failure", "initialized",
    "end of chain", "transmitter off", "", "", "", "", "isochronous enabled", "LDTSTOP# tristate enabled",
    "extended CTL time", "64 bit addressing",
)  # fmt: skip
_FLOW_CONTROL = ("", "", "", "in", "", "", "", "out", "", "", "", "in enabled", "", "", "", "out enabled")
_FREQUENCIES = (
    "200 MHz", "300 MHz", "400 MHz", "500 MHz", "600 MHz", "800 MHz", "1.0 GHz", "1.2 GHz", "1.4 GHz",
    "1.6 GHz", "1.8 GHz", "2.0 GHz", "2.2 GHz", "2.4 GHz", "2.6 GHz", "vendor specific",
)  # fmt: skip
_LINK_ERRORS = ("protocol", "overflow", "end of chain", "CTL timeout")
_FEATURES = (
    "isochronous flow control", "LDTSTOP#", "CRC test mode", "extended CTL time required",
    "64 bit addressing", "unit id reorder disabled", "", "", "extended register set",
    "upstream configuration enabled",
)  # fmt: skip
_ERROR_HANDLING = (
    "protocol flood", "overflow flood", "protocol fatal", "overflow fatal", "end of chain fatal",
    "response fatal", "CRC fatal", "system error fatal", "chain fail", "response error",
    "protocol nonfatal", "overflow nonfatal", "end of chain nonfatal", "response nonfatal", "CRC nonfatal",
    "system error nonfatal",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HyperTransportLink:
    """A link: its state (``control``), its CRC errors as a bit for each byte lane, widths, and frequency."""

    control: tuple[str, ...]
    crc_errors: int
    max_width_in: str
    max_width_out: str
    width_in: str
    width_out: str
    flow_control: tuple[str, ...]
    frequency: str | None
    errors: tuple[str, ...]
    frequencies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HyperTransportExtras:
    """What revision 1.02 added beside the links: features, error handling, upper halves of windows.

    ``memory_base_upper`` and ``memory_limit_upper`` are bits 39 to 32 of the prefetchable window. They and
    ``error_handling`` are ``None`` in a host without the extended register set.
    """

    features: tuple[str, ...]
    error_handling: tuple[str, ...] | None
    memory_base_upper: int | None
    memory_limit_upper: int | None


@dataclass(frozen=True, slots=True)
class HyperTransportSlave:
    """The interface of a device below the host: its unit ids, and its two links."""

    base_unit_id: int
    unit_count: int
    master_host: bool
    default_direction: bool
    drop_on_uninitialized_link: bool | None
    links: tuple[HyperTransportLink, ...]
    extras: HyperTransportExtras | None
    bus_number: int | None


@dataclass(frozen=True, slots=True)
class HyperTransportHost:
    """The interface of a host bridge, at one end of a chain."""

    warm_reset: bool
    double_ended: bool
    device_number: int | None
    chain_side: bool | None
    host_hide: bool | None
    act_as_slave: bool | None
    inbound_end_of_chain_error: bool | None
    drop_on_uninitialized_link: bool | None
    links: tuple[HyperTransportLink, ...]
    extras: HyperTransportExtras | None


@dataclass(frozen=True, slots=True)
class HyperTransport:
    """HyperTransport: ``type`` is the name of the capability's type; ``revision`` is ``None`` without one.

    The three parts after it are ``None`` except that of the type. ``mapped_address`` is where a device writes
    MSIs that become HyperTransport interrupts.
    """

    type: str
    revision: str | None
    slave: HyperTransportSlave | None
    host: HyperTransportHost | None
    mapping_enabled: bool | None
    mapping_fixed: bool | None
    mapped_address: int | None

    @classmethod
    def read(cls, at: Reader) -> HyperTransport:
        command = at.u16(2)
        kind = _type(command)
        is_mapping = kind == _MSI_MAPPING
        return cls(
            type=kind,
            revision=_revision(at, kind, command),
            slave=_slave(at, command) if kind == _SLAVE else None,
            host=_host(at, command) if kind == _HOST else None,
            mapping_enabled=flag(command, 0) if is_mapping else None,
            mapping_fixed=flag(command, 1) if is_mapping else None,
            mapped_address=_mapped_address(at, command) if is_mapping else None,
        )


def _type(command: int) -> str:
    short, long = command >> 13, command >> 11
    return _INTERFACES[short] if short < len(_INTERFACES) else _TYPES.get(long, f"type {long:#04x}")


def _revision(at: Reader, kind: str, command: int) -> str | None:
    if kind == _REVISION:
        value = bits(command, 0, 8)
    elif kind in _INTERFACES:
        value = at.u8(12 if kind == _SLAVE else 8)
    else:
        return None
    return f"{value >> 5}.{value & 0x1F:02}"


def _slave(at: Reader, command: int) -> HyperTransportSlave:
    is_new = at.u8(12) >= _REVISION_1_02
    return HyperTransportSlave(
        base_unit_id=bits(command, 0, 5),
        unit_count=bits(command, 5, 5),
        master_host=flag(command, 10),
        default_direction=flag(command, 11),
        drop_on_uninitialized_link=flag(command, 12) if is_new else None,
        links=(_link(at, 4, 13 if is_new else None), _link(at, 8, 17 if is_new else None)),
        extras=_extras(at.u8(16), at, 22) if is_new else None,
        bus_number=at.u8(26) if is_new else None,
    )


def _host(at: Reader, command: int) -> HyperTransportHost:
    is_new = at.u8(8) >= _REVISION_1_02
    features = at.u16(12) if is_new else 0
    return HyperTransportHost(
        warm_reset=flag(command, 0),
        double_ended=flag(command, 1),
        device_number=bits(command, 2, 5) if is_new else None,
        chain_side=flag(command, 7) if is_new else None,
        host_hide=flag(command, 8) if is_new else None,
        act_as_slave=flag(command, 10) if is_new else None,
        inbound_end_of_chain_error=flag(command, 11) if is_new else None,
        drop_on_uninitialized_link=flag(command, 12) if is_new else None,
        links=(_link(at, 4, 9 if is_new else None),),
        extras=_extras(features, at, 18 if flag(features, 8) else None) if is_new else None,
    )


def _link(at: Reader, control_at: int, frequency_at: int | None) -> HyperTransportLink:
    """Decode a link; ``frequency_at`` is the offset of its frequency, if the revision has it."""
    control, widths = at.u16(control_at), at.u16(control_at + 2)
    if frequency_at is None:
        control, frequency, able = control & 0x0FFF, 0, 0
    else:
        frequency, able = at.u8(frequency_at), at.u16(frequency_at + 1)
    return HyperTransportLink(
        control=names_of(control, _CONTROL),
        crc_errors=bits(control, 8, 4),
        max_width_in=_WIDTHS[bits(widths, 0, 3)],
        max_width_out=_WIDTHS[bits(widths, 4, 3)],
        width_in=_WIDTHS[bits(widths, 8, 3)],
        width_out=_WIDTHS[bits(widths, 12, 3)],
        flow_control=() if frequency_at is None else names_of(widths, _FLOW_CONTROL),
        frequency=None if frequency_at is None else _FREQUENCIES[bits(frequency, 0, 4)],
        errors=names_of(frequency >> 4, _LINK_ERRORS),
        frequencies=names_of(able, _FREQUENCIES),
    )


def _extras(features: int, at: Reader, errors_at: int | None) -> HyperTransportExtras:
    return HyperTransportExtras(
        features=names_of(features, _FEATURES),
        error_handling=None if errors_at is None else names_of(at.u16(errors_at), _ERROR_HANDLING),
        memory_base_upper=None if errors_at is None else at.u8(errors_at + 2),
        memory_limit_upper=None if errors_at is None else at.u8(errors_at + 3),
    )


def _mapped_address(at: Reader, command: int) -> int:
    if flag(command, 1):
        return _FIXED_ADDRESS
    return at.u32(8) << 32 | at.u32(4) & 0xFFF0_0000
