"""The extended capabilities that a vendor defines.

Source: PCI Express Base sections 7.9.5 and 7.9.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capabilities.cxl import CXL_VENDOR, CxlContent, read_cxl
from vfiotool.pci.capability_reader import Reader, bits


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
    """Designated Vendor Specific, defined by ``vendor_id``: ``length`` in bytes, with the header's ten.

    ``cxl`` has the fields of a capability of Compute Express Link; it is ``None`` for other vendors, for an
    unknown ``dvsec_id``, and if it is cut off.
    """

    vendor_id: int
    revision: int
    length: int
    dvsec_id: int
    cxl: CxlContent | None

    @classmethod
    def read(cls, at: Reader) -> DesignatedVendorSpecific:
        header, number = at.u32(4), at.u16(8)
        vendor, revision, length = bits(header, 0, 16), bits(header, 16, 4), bits(header, 20, 12)
        cxl = read_cxl(at, number, revision, length) if vendor == CXL_VENDOR else None
        return cls(vendor, revision, length, number, cxl)
