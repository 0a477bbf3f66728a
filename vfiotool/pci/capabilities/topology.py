"""The extended capabilities that tell how functions and root complexes are connected.

Source: PCI Express Base section 7.8.8.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader


@dataclass(frozen=True, slots=True)
class AlternativeRouting:
    """Alternative Routing-ID: the number of the device's next function, 0 if this is the last."""

    next_function: int

    @classmethod
    def read(cls, at: Reader) -> AlternativeRouting:
        return cls(at.u16(4) >> 8)
