"""The device registers of PCI Express: what a function can send and receive, and what it does.

Source: PCI Express Base sections 7.5.3.3 to 7.5.3.5, 7.5.3.15 and 7.5.3.16.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.acs import PortType, read_port_type
from vfiotool.pci.capability_reader import Reader, bits, flag, name_of, names_of

_ERRORS = ("correctable", "non-fatal", "fatal", "unsupported request")
_ENDPOINTS = (PortType.ENDPOINT, PortType.LEGACY_ENDPOINT)
_WITH_RESET = (*_ENDPOINTS, PortType.INTEGRATED_ENDPOINT)
_WITH_POWER_LIMIT = (PortType.ENDPOINT, PortType.UPSTREAM, PortType.PCIE_TO_PCI)
_CARD_FEATURES = ("attention button", "attention indicator", "power indicator")
_L0S_LATENCIES = ("<64 ns", "<128 ns", "<256 ns", "<512 ns", "<1 us", "<2 us", "<4 us", "unlimited")
_L1_LATENCIES = ("<1 us", "<2 us", "<4 us", "<8 us", "<16 us", "<32 us", "<64 us", "unlimited")
_MILLIWATTS = (1000, 100, 10, 1)
_ABOVE_250_WATTS, _ABOVE_600_WATTS = 0xF0, 0xFF
_ATOMICS = ("", "", "", "", "", "", "routing", "32 bits", "64 bits", "128 bits CAS")
_TIMEOUT_RANGES = ("A", "B", "C", "D")
_TIMEOUTS = (
    "50 us to 50 ms", "50 us to 100 us", "1 ms to 10 ms", "", "", "16 ms to 55 ms", "65 ms to 210 ms", "", "",
    "260 ms to 900 ms", "1 s to 3.5 s", "", "", "4 s to 13 s", "17 s to 64 s",
)  # fmt: skip
_OBFF = ("message", "WAKE#")
_OBFF_ENABLED = ("disabled", "message A", "message B", "WAKE#")
_EMERGENCY_POWER = ("not supported", "device specific", "form factor or device specific")
_CACHE_LINES = ("not supported", "64 bytes", "128 bytes")
_TPH = ("not supported", "TPH", "", "TPH and extended TPH")


@dataclass(frozen=True, slots=True)
class ExpressDevice:
    """Device registers: the maximum payload and read request in bytes; ``flr`` is True if the function has a
    function level reset. ``errors`` are the errors detected since they were last cleared, and
    ``error_reporting`` those that the function reports to the root complex.

    ``extended_tags`` and ``phantom_functions_enabled`` are settings; ``extended_tags_supported`` and
    ``phantom_functions``, a number of functions, are what there is. ``l0s_latency`` and ``l1_latency`` are
    what an endpoint accepts. ``card_features`` are of devices before PCI Express 1.1.
    ``slot_power_limit_mw`` is ``None`` above 600 W, too. A field that this type of function lacks is
    ``None``.
    """

    max_payload: int
    max_payload_supported: int
    max_read_request: int
    flr: bool
    extended_tags: bool
    relaxed_ordering: bool
    no_snoop: bool
    errors: tuple[str, ...]
    transactions_pending: bool
    error_reporting: tuple[str, ...]
    extended_tags_supported: bool
    phantom_functions: int
    phantom_functions_enabled: bool
    l0s_latency: str | None
    l1_latency: str | None
    card_features: tuple[str, ...]
    role_based_errors: bool
    slot_power_limit_mw: int | None
    tee_io: bool
    initiate_flr: bool | None
    bridge_config_retry: bool | None
    aux_power_enabled: bool
    aux_power_detected: bool

    @classmethod
    def read(cls, at: Reader) -> ExpressDevice:
        able, control, status = at.u32(4), at.u16(8), at.u16(10)
        kind = read_port_type(at)
        is_endpoint = kind in _ENDPOINTS
        return cls(
            max_payload=128 << bits(control, 5, 3),
            max_payload_supported=128 << bits(able, 0, 3),
            max_read_request=128 << bits(control, 12, 3),
            flr=flag(able, 28),
            extended_tags=flag(control, 8),
            relaxed_ordering=flag(control, 4),
            no_snoop=flag(control, 11),
            errors=names_of(status, _ERRORS),
            transactions_pending=flag(status, 5),
            error_reporting=names_of(control, _ERRORS),
            extended_tags_supported=flag(able, 5),
            phantom_functions=(1 << bits(able, 3, 2)) - 1,
            phantom_functions_enabled=flag(control, 9),
            l0s_latency=_L0S_LATENCIES[bits(able, 6, 3)] if is_endpoint else None,
            l1_latency=_L1_LATENCIES[bits(able, 9, 3)] if is_endpoint else None,
            card_features=names_of(able >> 12, _CARD_FEATURES),
            role_based_errors=flag(able, 15),
            slot_power_limit_mw=_limit(able) if kind in _WITH_POWER_LIMIT else None,
            tee_io=flag(able, 30),
            initiate_flr=flag(control, 15) if kind in _WITH_RESET and flag(able, 28) else None,
            bridge_config_retry=flag(control, 15) if kind == PortType.PCIE_TO_PCI else None,
            aux_power_enabled=flag(control, 10),
            aux_power_detected=flag(status, 4),
        )


@dataclass(frozen=True, slots=True)
class ExpressDevice2:
    """Device registers 2, since version 2; what ends in ``_enabled`` is set, and what does not is supported.

    ``completion_timeout_ranges`` has the letters of the ranges that can be set, and ``completion_timeout``
    the time that is set. ``max_end_end_prefixes`` is ``None`` if the function takes no end-end TLP prefixes,
    and ``ln_cache_line`` if it is no root port.
    """

    atomics: tuple[str, ...]
    atomics_enabled: bool
    ltr: bool
    ltr_enabled: bool
    ari_forwarding: bool
    ari_forwarding_enabled: bool
    completion_timeout_ranges: tuple[str, ...]
    completion_timeout: str
    completion_timeout_disable: bool
    completion_timeout_disable_enabled: bool
    no_ro_enabled_pr_pr: bool
    atomic_egress_blocking_enabled: bool
    ido_request_enabled: bool
    ido_completion_enabled: bool
    ten_bit_tag_completer: bool
    ten_bit_tag_requester: bool
    ten_bit_tag_requester_enabled: bool
    obff: tuple[str, ...]
    obff_enabled: str
    extended_format: bool
    end_end_prefixes: bool
    max_end_end_prefixes: int | None
    end_end_prefix_blocking_enabled: bool
    emergency_power_reduction: str
    emergency_power_reduction_init: bool
    emergency_power_reduction_request_enabled: bool
    frs: bool
    ln_cache_line: str | None
    tph_completer: str

    @classmethod
    def read(cls, at: Reader) -> ExpressDevice2:
        able, control = at.u32(36), at.u16(40)
        is_root_port = read_port_type(at) == PortType.ROOT_PORT
        has_prefixes = flag(able, 21)
        return cls(
            atomics=names_of(able, _ATOMICS),
            atomics_enabled=flag(control, 6),
            ltr=flag(able, 11),
            ltr_enabled=flag(control, 10),
            ari_forwarding=flag(able, 5),
            ari_forwarding_enabled=flag(control, 5),
            completion_timeout_ranges=names_of(able, _TIMEOUT_RANGES),
            completion_timeout=name_of(bits(control, 0, 4), _TIMEOUTS),
            completion_timeout_disable=flag(able, 4),
            completion_timeout_disable_enabled=flag(control, 4),
            no_ro_enabled_pr_pr=flag(able, 10),
            atomic_egress_blocking_enabled=flag(control, 7),
            ido_request_enabled=flag(control, 8),
            ido_completion_enabled=flag(control, 9),
            ten_bit_tag_completer=flag(able, 16),
            ten_bit_tag_requester=flag(able, 17),
            ten_bit_tag_requester_enabled=flag(control, 12),
            obff=names_of(able >> 18, _OBFF),
            obff_enabled=_OBFF_ENABLED[bits(control, 13, 2)],
            extended_format=flag(able, 20),
            end_end_prefixes=has_prefixes,
            max_end_end_prefixes=(bits(able, 22, 2) or 4) if has_prefixes else None,
            end_end_prefix_blocking_enabled=flag(control, 15),
            emergency_power_reduction=name_of(bits(able, 24, 2), _EMERGENCY_POWER),
            emergency_power_reduction_init=flag(able, 26),
            emergency_power_reduction_request_enabled=flag(control, 11),
            frs=flag(able, 31),
            ln_cache_line=name_of(bits(able, 14, 2), _CACHE_LINES) if is_root_port else None,
            tph_completer=name_of(bits(able, 12, 2), _TPH),
        )


def power_limit_mw(value: int, scale: int) -> int | None:
    """Return a slot power limit in milliwatts, or ``None`` above 600 W (PCI Express Base section 7.5.3.9)."""
    if scale == 0 and value >= _ABOVE_250_WATTS:
        return None if value == _ABOVE_600_WATTS else (250 + 25 * (value - _ABOVE_250_WATTS)) * 1000
    return value * _MILLIWATTS[scale]


def _limit(able: int) -> int | None:
    return power_limit_mw(bits(able, 18, 8), bits(able, 26, 2))
