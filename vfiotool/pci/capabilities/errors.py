"""Advanced Error Reporting.

Source: PCI Express Base section 7.8.4; the names of errors are the kernel's (drivers/pci/pcie/aer.c).
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, names_of

_UNCORRECTABLE = (
    "", "", "", "", "DLP", "SDES", "", "", "", "", "", "", "TLP", "FCP", "CmpltTO", "CmpltAbrt",
    "UnxCmplt", "RxOF", "MalfTLP", "ECRC", "UnsupReq", "ACSViol", "UncorrIntErr", "BlockedTLP",
    "AtomicOpBlocked", "TLPBlockedErr", "PoisonTLPBlocked",
)  # fmt: skip
_CORRECTABLE = (
    "RxErr", "", "", "", "", "", "BadTLP", "BadDLLP", "Rollover", "", "", "", "Timeout", "NonFatalErr",
    "CorrIntErr", "HeaderOF",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdvancedErrors:
    """Advanced Error Reporting: the detected errors, the masked errors, and the errors that count as fatal.

    ``header_log`` has the TLP header of the first uncorrectable error, in hexadecimal.
    """

    uncorrectable: tuple[str, ...]
    uncorrectable_masked: tuple[str, ...]
    fatal: tuple[str, ...]
    correctable: tuple[str, ...]
    correctable_masked: tuple[str, ...]
    first_error: int
    header_log: str

    @classmethod
    def read(cls, at: Reader) -> AdvancedErrors:
        return cls(
            uncorrectable=names_of(at.u32(4), _UNCORRECTABLE),
            uncorrectable_masked=names_of(at.u32(8), _UNCORRECTABLE),
            fatal=names_of(at.u32(12), _UNCORRECTABLE),
            correctable=names_of(at.u32(16), _CORRECTABLE),
            correctable_masked=names_of(at.u32(20), _CORRECTABLE),
            first_error=at.u32(24) & 0x1F,
            header_log=" ".join(f"{at.u32(offset):08x}" for offset in (28, 32, 36, 40)),
        )
