"""The extended capabilities of PCI Express, except Access Control Services (see ``pci.acs``).

Source: PCI Express Base sections 7.7 to 7.9, 9.3.3 (SR-IOV), 10.5 (ATS and PRI); the names of errors are
the kernel's (drivers/pci/pcie/aer.c).
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
_L1_SUBSTATES = ("PCI-PM L1.2", "PCI-PM L1.1", "ASPM L1.2", "ASPM L1.1")
_PAGE = 4096
_MIB = 1 << 20
_MOST_BARS = 6
_SIZES = 44  # 1 MiB to 8 EiB
_LARGEST_SCALE = 5


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


@dataclass(frozen=True, slots=True)
class SerialNumber:
    """Device Serial Number, most significant byte first."""

    serial: str

    @classmethod
    def read(cls, at: Reader) -> SerialNumber:
        return cls((at.u32(8) << 32 | at.u32(4)).to_bytes(8, "big").hex("-"))


@dataclass(frozen=True, slots=True)
class ExtendedVendorSpecific:
    """Vendor Specific, defined by the device's vendor: ``length`` in bytes, with the header's eight."""

    vsec_id: int
    revision: int
    length: int

    @classmethod
    def read(cls, at: Reader) -> ExtendedVendorSpecific:
        header = at.u32(4)
        return cls(header & 0xFFFF, header >> 16 & 0xF, header >> 20)


@dataclass(frozen=True, slots=True)
class DesignatedVendorSpecific:
    """Designated Vendor Specific, defined by ``vendor_id``: ``length`` in bytes, with the header's ten."""

    vendor_id: int
    revision: int
    length: int
    dvsec_id: int

    @classmethod
    def read(cls, at: Reader) -> DesignatedVendorSpecific:
        header = at.u32(4)
        return cls(header & 0xFFFF, header >> 16 & 0xF, header >> 20, at.u16(8))


@dataclass(frozen=True, slots=True)
class AlternativeRouting:
    """Alternative Routing-ID: the number of the device's next function, 0 if this is the last."""

    next_function: int

    @classmethod
    def read(cls, at: Reader) -> AlternativeRouting:
        return cls(at.u16(4) >> 8)


@dataclass(frozen=True, slots=True)
class AddressTranslation:
    """Address Translation Services: the depth of the invalidate queue, the smallest translation in bytes."""

    enabled: bool
    queue_depth: int
    page_aligned: bool
    smallest_translation: int

    @classmethod
    def read(cls, at: Reader) -> AddressTranslation:
        able, control = at.u16(4), at.u16(6)
        return cls(
            enabled=bool(control & 1 << 15),
            queue_depth=(able & 0x1F) or 32,
            page_aligned=bool(able & 1 << 5),
            smallest_translation=_PAGE << (control & 0x1F),
        )


@dataclass(frozen=True, slots=True)
class Sriov:
    """SR-IOV: VF ``n``, from 0, has routing-ID PF + ``first_vf_offset`` + n * ``vf_stride``.

    ``page_sizes`` and ``page_size`` are in bytes; ``vf_bars`` are the six 32-bit registers, not decoded.
    """

    enabled: bool
    memory_enabled: bool
    ari_hierarchy: bool
    initial_vfs: int
    total_vfs: int
    num_vfs: int
    dependency_link: int
    first_vf_offset: int
    vf_stride: int
    vf_device_id: int
    page_sizes: tuple[int, ...]
    page_size: int
    vf_bars: tuple[int, ...]

    @classmethod
    def read(cls, at: Reader) -> Sriov:
        control, sizes = at.u16(8), at.u32(28)
        return cls(
            enabled=bool(control & 1),
            memory_enabled=bool(control & 1 << 3),
            ari_hierarchy=bool(control & 1 << 4),
            initial_vfs=at.u16(12),
            total_vfs=at.u16(14),
            num_vfs=at.u16(16),
            dependency_link=at.u8(18),
            first_vf_offset=at.u16(20),
            vf_stride=at.u16(22),
            vf_device_id=at.u16(26),
            page_sizes=tuple(_PAGE << number for number in range(32) if sizes >> number & 1),
            page_size=_PAGE * at.u32(32),
            vf_bars=tuple(at.u32(36 + 4 * number) for number in range(_MOST_BARS)),
        )


@dataclass(frozen=True, slots=True)
class PageRequests:
    """Page Request Interface: ``capacity`` and ``allocation`` are maxima of outstanding requests."""

    enabled: bool
    stopped: bool
    response_failure: bool
    unexpected_group: bool
    capacity: int
    allocation: int

    @classmethod
    def read(cls, at: Reader) -> PageRequests:
        status = at.u16(6)
        return cls(
            enabled=bool(at.u16(4) & 1),
            stopped=bool(status & 1 << 8),
            response_failure=bool(status & 1),
            unexpected_group=bool(status & 1 << 1),
            capacity=at.u32(8),
            allocation=at.u32(12),
        )


@dataclass(frozen=True, slots=True)
class ResizableSize:
    """A BAR of Resizable BAR: its size and the supported sizes, in bytes.

    ``size`` is ``None`` if the register's value is undefined.
    """

    bar: int
    size: int | None
    sizes: tuple[int, ...]

    @classmethod
    def read(cls, at: Reader, offset: int) -> ResizableSize:
        able, control = at.u32(offset), at.u32(offset + 4)
        number, numbers = control >> 8 & 0x3F, able >> 4 | control >> 16 << 28
        return cls(
            bar=control & 7,
            size=_MIB << number if number < _SIZES else None,
            sizes=tuple(_MIB << number for number in range(_SIZES) if numbers >> number & 1),
        )


@dataclass(frozen=True, slots=True)
class ResizableBar:
    """Resizable BAR: the function's BARs with several supported sizes."""

    bars: tuple[ResizableSize, ...]

    @classmethod
    def read(cls, at: Reader) -> ResizableBar:
        return cls(_resizable_sizes(at))


@dataclass(frozen=True, slots=True)
class VfResizableBar:
    """VF Resizable BAR: the BARs of the function's VFs with several supported sizes."""

    bars: tuple[ResizableSize, ...]

    @classmethod
    def read(cls, at: Reader) -> VfResizableBar:
        return cls(_resizable_sizes(at))


@dataclass(frozen=True, slots=True)
class LatencyTolerance:
    """Latency Tolerance Reporting: the maximum latencies that the function may request, in nanoseconds.

    ``None`` if the scale in the register is undefined.
    """

    max_snoop_ns: int | None
    max_no_snoop_ns: int | None

    @classmethod
    def read(cls, at: Reader) -> LatencyTolerance:
        return cls(_latency(at.u16(4)), _latency(at.u16(6)))


@dataclass(frozen=True, slots=True)
class ProcessAddressSpace:
    """Process Address Space ID: the ``width`` of PASIDs in bits, the supported and enabled permissions."""

    enabled: bool
    width: int
    execute: bool
    execute_enabled: bool
    privileged: bool
    privileged_enabled: bool

    @classmethod
    def read(cls, at: Reader) -> ProcessAddressSpace:
        able, control = at.u16(4), at.u16(6)
        return cls(
            enabled=bool(control & 1),
            width=able >> 8 & 0x1F,
            execute=bool(able & 1 << 1),
            execute_enabled=bool(control & 1 << 1),
            privileged=bool(able & 1 << 2),
            privileged_enabled=bool(control & 1 << 2),
        )


@dataclass(frozen=True, slots=True)
class L1Substates:
    """L1 PM Substates: the supported and the enabled substates of the link."""

    supported: tuple[str, ...]
    enabled: tuple[str, ...]

    @classmethod
    def read(cls, at: Reader) -> L1Substates:
        return cls(names_of(at.u32(4), _L1_SUBSTATES), names_of(at.u32(8), _L1_SUBSTATES))


def _latency(value: int) -> int | None:
    """Return nanoseconds from a 10-bit value and a 3-bit scale, a power of 32."""
    scale = value >> 10 & 7
    return (value & 0x3FF) << 5 * scale if scale <= _LARGEST_SCALE else None


def _resizable_sizes(at: Reader) -> tuple[ResizableSize, ...]:
    count = min(at.u32(8) >> 5 & 7, _MOST_BARS)
    return tuple(ResizableSize.read(at, 4 + 8 * number) for number in range(count))
