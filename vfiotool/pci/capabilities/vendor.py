"""The extended capabilities that a vendor defines.

Source: PCI Express Base sections 7.9.5 and 7.9.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader


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
