"""The extended capabilities that report errors: Advanced Error Reporting, and what contains an error.

Source: PCI Express Base sections 7.8.4 and 7.9.14. The names of errors are the kernel's
(drivers/pci/pcie/aer.c), and those of lspci where the kernel has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.acs import PortType, port_type
from vfiotool.pci.capability_reader import Reader, bits, flag, if_complete, name_of, names_of

_UNCORRECTABLE = (
    "", "", "", "", "DLP", "SDES", "", "", "", "", "", "", "TLP", "FCP", "CmpltTO", "CmpltAbrt",
    "UnxCmplt", "RxOF", "MalfTLP", "ECRC", "UnsupReq", "ACSViol", "UncorrIntErr", "BlockedTLP",
    "AtomicOpBlocked", "TLPBlockedErr", "PoisonTLPBlocked", "DMWrReqBlocked", "IDECheck", "MisIDETLP",
    "PCRC_CHECK", "TLPXlatBlocked",
)  # fmt: skip
_CORRECTABLE = (
    "RxErr", "", "", "", "", "", "BadTLP", "BadDLLP", "Rollover", "", "", "", "Timeout", "NonFatalErr",
    "CorrIntErr", "HeaderOF",
)  # fmt: skip
_REPORTERS = (PortType.ROOT_PORT, PortType.EVENT_COLLECTOR)
_DPC_TRIGGERS = ("disabled", "fatal", "fatal and non-fatal")
_DPC_REASONS = ("uncorrectable error", "ERR_NONFATAL", "ERR_FATAL", "extension")
_DPC_EXTENSIONS = ("RP PIO error", "software trigger")


@dataclass(frozen=True, slots=True)
class RootErrors:
    """What a root port or an event collector has received from the devices below it.

    The sources are requester ids: the bus in bits 8 to 15, device and function below.
    """

    cor_enabled: bool
    nonfatal_enabled: bool
    fatal_enabled: bool
    cor_received: bool
    multi_cor_received: bool
    uncor_received: bool
    multi_uncor_received: bool
    first_uncor_fatal: bool
    nonfatal_received: bool
    fatal_received: bool
    interrupt_message: int
    cor_source_id: int
    uncor_source_id: int

    @classmethod
    def read(cls, at: Reader) -> RootErrors:
        command, status = at.u32(44), at.u32(48)
        return cls(
            cor_enabled=flag(command, 0),
            nonfatal_enabled=flag(command, 1),
            fatal_enabled=flag(command, 2),
            cor_received=flag(status, 0),
            multi_cor_received=flag(status, 1),
            uncor_received=flag(status, 2),
            multi_uncor_received=flag(status, 3),
            first_uncor_fatal=flag(status, 4),
            nonfatal_received=flag(status, 5),
            fatal_received=flag(status, 6),
            interrupt_message=bits(status, 27, 5),
            cor_source_id=at.u16(52),
            uncor_source_id=at.u16(54),
        )


@dataclass(frozen=True, slots=True)
class AdvancedErrors:
    """Advanced Error Reporting: the detected errors, the masked errors, and the errors that count as fatal.

    ``header_log`` has the TLP header of the first uncorrectable error, and ``prefix_log`` its prefixes, in
    hexadecimal. ``prefix_log`` is ``None`` if none are recorded; ``root`` if the function is neither a root
    port nor an event collector.
    """

    uncorrectable: tuple[str, ...]
    uncorrectable_masked: tuple[str, ...]
    fatal: tuple[str, ...]
    correctable: tuple[str, ...]
    correctable_masked: tuple[str, ...]
    first_error: int
    ecrc_generation_capable: bool
    ecrc_generation_enabled: bool
    ecrc_check_capable: bool
    ecrc_check_enabled: bool
    multiple_headers_capable: bool
    multiple_headers_enabled: bool
    prefix_log_present: bool
    completion_timeout_log_capable: bool
    header_log: str
    prefix_log: str | None
    root: RootErrors | None

    @classmethod
    def read(cls, at: Reader) -> AdvancedErrors:
        control = at.u32(24)
        return cls(
            uncorrectable=names_of(at.u32(4), _UNCORRECTABLE),
            uncorrectable_masked=names_of(at.u32(8), _UNCORRECTABLE),
            fatal=names_of(at.u32(12), _UNCORRECTABLE),
            correctable=names_of(at.u32(16), _CORRECTABLE),
            correctable_masked=names_of(at.u32(20), _CORRECTABLE),
            first_error=bits(control, 0, 5),
            ecrc_generation_capable=flag(control, 5),
            ecrc_generation_enabled=flag(control, 6),
            ecrc_check_capable=flag(control, 7),
            ecrc_check_enabled=flag(control, 8),
            multiple_headers_capable=flag(control, 9),
            multiple_headers_enabled=flag(control, 10),
            prefix_log_present=flag(control, 11),
            completion_timeout_log_capable=flag(control, 12),
            header_log=_log(at.block(28)),
            prefix_log=if_complete(_log, at.block(56)) if flag(control, 11) else None,
            root=if_complete(RootErrors.read, at) if port_type(at.config) in _REPORTERS else None,
        )


@dataclass(frozen=True, slots=True)
class DownstreamPortContainment:
    """Downstream Port Containment: a port cuts off the devices below it when they report an error.

    ``trigger_reason_extension`` counts if ``trigger_reason`` is ``extension``. ``source_id`` is the requester
    id that reported the error. ``rp_pio_first_error`` is the number of the first bit in RP PIO Status.
    """

    interrupt_message: int
    rp_extensions: bool
    poisoned_tlp_blocking: bool
    software_trigger: bool
    rp_pio_log_size: int
    dl_active_signal: bool
    trigger: str
    completion_unsupported_request: bool
    interrupt_enabled: bool
    err_cor_enabled: bool
    poisoned_tlp_blocking_enabled: bool
    software_triggered: bool
    dl_active_signal_enabled: bool
    triggered: bool
    trigger_reason: str
    interrupt_status: bool
    rp_busy: bool
    trigger_reason_extension: str
    rp_pio_first_error: int
    source_id: int

    @classmethod
    def read(cls, at: Reader) -> DownstreamPortContainment:
        able, control, status = at.u16(4), at.u16(6), at.u16(8)
        return cls(
            interrupt_message=bits(able, 0, 5),
            rp_extensions=flag(able, 5),
            poisoned_tlp_blocking=flag(able, 6),
            software_trigger=flag(able, 7),
            rp_pio_log_size=bits(able, 8, 4) | bits(able, 13, 1) << 4,
            dl_active_signal=flag(able, 12),
            trigger=name_of(bits(control, 0, 2), _DPC_TRIGGERS),
            completion_unsupported_request=flag(control, 2),
            interrupt_enabled=flag(control, 3),
            err_cor_enabled=flag(control, 4),
            poisoned_tlp_blocking_enabled=flag(control, 5),
            software_triggered=flag(control, 6),
            dl_active_signal_enabled=flag(control, 7),
            triggered=flag(status, 0),
            trigger_reason=name_of(bits(status, 1, 2), _DPC_REASONS),
            interrupt_status=flag(status, 3),
            rp_busy=flag(status, 4),
            trigger_reason_extension=name_of(bits(status, 5, 2), _DPC_EXTENSIONS),
            rp_pio_first_error=bits(status, 8, 5),
            source_id=at.u16(10),
        )


def _log(at: Reader) -> str:
    return " ".join(f"{at.u32(offset):08x}" for offset in (0, 4, 8, 12))
