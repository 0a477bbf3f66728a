"""The extended capabilities that tell what a device is.

Source: PCI Express Base section 7.9.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader


@dataclass(frozen=True, slots=True)
class SerialNumber:
    """Device Serial Number, most significant byte first."""

    serial: str

    @classmethod
    def read(cls, at: Reader) -> SerialNumber:
        return cls((at.u32(8) << 32 | at.u32(4)).to_bytes(8, "big").hex("-"))
