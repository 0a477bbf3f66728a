"""The link registers of PCI Express: what a link can do, and what it does.

Source: PCI Express Base sections 7.5.3.6 to 7.5.3.8 and 7.5.3.18 to 7.5.3.20.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.acs import PortType, read_port_type
from vfiotool.pci.capability_reader import Reader, bits, flag, name_of, names_of

_SPEEDS = ("", "2.5 GT/s", "5.0 GT/s", "8.0 GT/s", "16.0 GT/s", "32.0 GT/s", "64.0 GT/s", "128.0 GT/s")
_ASPM = ("L0s", "L1")
_L0S_LATENCIES = ("<64 ns", "<128 ns", "<256 ns", "<512 ns", "<1 us", "<2 us", "<4 us", ">4 us")
_L1_LATENCIES = ("<1 us", "<2 us", "<4 us", "<8 us", "<16 us", "<32 us", "<64 us", ">64 us")
_WITH_BOUNDARY = (
    PortType.ROOT_PORT, PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.PCIE_TO_PCI,
)  # fmt: skip
_DOWNSTREAM = (PortType.ROOT_PORT, PortType.DOWNSTREAM, PortType.PCI_TO_PCIE)
_DEEMPHASIS = ("-6 dB", "-3.5 dB")
_MARGINS = (
    "normal operating range",
    "800-1200 mV (full swing), 400-700 mV (half swing)",
    *("200-400 mV (full swing), 100-200 mV (half swing)",) * 4,
)
_PRESETS = (
    "-6 dB de-emphasis, 0 dB preshoot",
    "-3.5 dB de-emphasis, 0 dB preshoot",
    "-4.4 dB de-emphasis, 0 dB preshoot",
    "-2.5 dB de-emphasis, 0 dB preshoot",
    "0 dB de-emphasis, 0 dB preshoot",
    "0 dB de-emphasis, 1.9 dB preshoot",
    "0 dB de-emphasis, 2.5 dB preshoot",
    "-6 dB de-emphasis, 3.5 dB preshoot",
    "-3.5 dB de-emphasis, 3.5 dB preshoot",
    "0 dB de-emphasis, 3.5 dB preshoot",
)
_CROSSLINKS = ("not supported", "upstream port", "downstream port", "not complete")
_COMPONENTS = (
    "link down, not determined",
    "link down, not present",
    "link down, present",
    "",
    "link up, present",
    "link up, present, DRS received",
)


@dataclass(frozen=True, slots=True)
class ExpressLink:
    """Link registers: current and maximum speed and width. A speed without a defined meaning is ``unknown``.

    ``active`` is ``None`` if the port does not report it, an exit latency if the link has no such state, and
    ``read_completion_boundary``, in bytes, if this type of function lacks it.
    """

    speed: str
    width: int
    max_speed: str
    max_width: int
    port: int
    aspm: tuple[str, ...]
    aspm_supported: tuple[str, ...]
    disabled: bool
    training: bool
    active: bool | None
    l0s_exit_latency: str | None
    l1_exit_latency: str | None
    clock_pm: bool
    clock_pm_enabled: bool
    surprise_down: bool
    active_reporting: bool
    bandwidth_notification: bool
    aspm_optionality: bool
    read_completion_boundary: int | None
    common_clock: bool
    extended_synch: bool
    autonomous_width_disabled: bool
    bandwidth_interrupt_enabled: bool
    autonomous_bandwidth_interrupt_enabled: bool
    flit_mode_disabled: bool
    training_error: bool
    slot_clock: bool
    bandwidth_management: bool
    autonomous_bandwidth: bool

    @classmethod
    def read(cls, at: Reader) -> ExpressLink:
        able, control, status = at.u32(12), at.u16(16), at.u16(18)
        has_boundary = read_port_type(at) in _WITH_BOUNDARY
        return cls(
            speed=_speed(bits(status, 0, 4)),
            width=bits(status, 4, 6),
            max_speed=_speed(bits(able, 0, 4)),
            max_width=bits(able, 4, 6),
            port=bits(able, 24, 8),
            aspm=names_of(control, _ASPM),
            aspm_supported=names_of(able >> 10, _ASPM),
            disabled=flag(control, 4),
            training=flag(status, 11),
            active=flag(status, 13) if flag(able, 20) else None,
            l0s_exit_latency=_L0S_LATENCIES[bits(able, 12, 3)] if flag(able, 10) else None,
            l1_exit_latency=_L1_LATENCIES[bits(able, 15, 3)] if flag(able, 11) else None,
            clock_pm=flag(able, 18),
            clock_pm_enabled=flag(control, 8),
            surprise_down=flag(able, 19),
            active_reporting=flag(able, 20),
            bandwidth_notification=flag(able, 21),
            aspm_optionality=flag(able, 22),
            read_completion_boundary=64 << bits(control, 3, 1) if has_boundary else None,
            common_clock=flag(control, 6),
            extended_synch=flag(control, 7),
            autonomous_width_disabled=flag(control, 9),
            bandwidth_interrupt_enabled=flag(control, 10),
            autonomous_bandwidth_interrupt_enabled=flag(control, 11),
            flit_mode_disabled=flag(control, 13),
            training_error=flag(status, 10),
            slot_clock=flag(status, 12),
            bandwidth_management=flag(status, 14),
            autonomous_bandwidth=flag(status, 15),
        )


@dataclass(frozen=True, slots=True)
class ExpressLink2:
    """Link registers 2, since version 2: the supported speeds, the target, equalization at 8 GT/s, retimers.

    ``speeds`` is empty before PCI Express 3.0. ``selectable_deemphasis`` is ``None`` if the function is no
    downstream port; so are ``drs_received`` and ``downstream_component`` if the port does not tell. In a
    device of several functions only function 0 has the control register.
    """

    speeds: tuple[str, ...]
    crosslink: bool
    retimer: bool
    two_retimers: bool
    drs: bool
    target_speed: str
    enter_compliance: bool
    autonomous_speed_disabled: bool
    selectable_deemphasis: str | None
    transmit_margin: str
    enter_modified_compliance: bool
    compliance_sos: bool
    compliance_preset: str
    deemphasis: str
    equalization_complete: bool
    equalization_phase1: bool
    equalization_phase2: bool
    equalization_phase3: bool
    equalization_request: bool
    retimer_detected: bool
    two_retimers_detected: bool
    crosslink_resolution: str
    flit_mode: bool
    drs_received: bool | None
    downstream_component: str | None

    @classmethod
    def read(cls, at: Reader) -> ExpressLink2:
        able, control, status = at.u32(44), at.u16(48), at.u16(50)
        kind = read_port_type(at)
        tells_readiness = kind in _DOWNSTREAM and flag(able, 31)
        return cls(
            speeds=names_of(bits(able, 0, 8), _SPEEDS),
            crosslink=flag(able, 8),
            retimer=flag(able, 23),
            two_retimers=flag(able, 24),
            drs=flag(able, 31),
            target_speed=_speed(bits(control, 0, 4) or 1),
            enter_compliance=flag(control, 4),
            autonomous_speed_disabled=flag(control, 5),
            selectable_deemphasis=_DEEMPHASIS[bits(control, 6, 1)] if kind == PortType.DOWNSTREAM else None,
            transmit_margin=name_of(bits(control, 7, 3), _MARGINS),
            enter_modified_compliance=flag(control, 10),
            compliance_sos=flag(control, 11),
            compliance_preset=name_of(bits(control, 12, 4), _PRESETS),
            deemphasis=_DEEMPHASIS[bits(status, 0, 1)],
            equalization_complete=flag(status, 1),
            equalization_phase1=flag(status, 2),
            equalization_phase2=flag(status, 3),
            equalization_phase3=flag(status, 4),
            equalization_request=flag(status, 5),
            retimer_detected=flag(status, 6),
            two_retimers_detected=flag(status, 7),
            crosslink_resolution=_CROSSLINKS[bits(status, 8, 2)],
            flit_mode=flag(status, 10),
            drs_received=flag(status, 15) if tells_readiness else None,
            downstream_component=name_of(bits(status, 12, 3), _COMPONENTS) if tells_readiness else None,
        )


def _speed(number: int) -> str:
    return _SPEEDS[number] if 0 < number < len(_SPEEDS) else "unknown"
