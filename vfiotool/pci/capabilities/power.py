"""The extended capabilities for power and latency.

Source: PCI Express Base sections 7.8.2 and 7.8.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, names_of

_L1_SUBSTATES = ("PCI-PM L1.2", "PCI-PM L1.1", "ASPM L1.2", "ASPM L1.1")
_LARGEST_SCALE = 5


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
