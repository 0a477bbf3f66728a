"""The PCI-X capability, of devices and of bridges.

Source: PCI-X Protocol Addendum 2.0 chapter 7; ``pcix_bus_speed`` in drivers/pci/probe.c. Bits have their
names in include/uapi/linux/pci_regs.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, bits, flag, name_of, names_of
from vfiotool.pci.config_space import header_type

_BRIDGE = 1
_SPLITS = (1, 2, 3, 4, 8, 12, 16, 32)
_STATUS = (
    "64bit", "133mhz", "spl_disc", "unx_spl", "complex", "", "", "", "", "", "", "", "",
    "spl_err", "266mhz", "533mhz",
)  # fmt: skip
_BRIDGE_STATUS = (
    "64bit", "133mhz", "spl_disc", "unx_spl", "spl_overrun", "spl_delayed", "", "", "", "", "", "", "", "",
    "266mhz", "533mhz",
)  # fmt: skip
_FREQUENCIES = (
    "conventional", "66 MHz", "100 MHz", "133 MHz",
    "", "66 MHz ECC", "100 MHz ECC", "133 MHz ECC",
    "", "66 MHz PCI-X 266", "100 MHz PCI-X 266", "133 MHz PCI-X 266",
    "", "66 MHz PCI-X 533", "100 MHz PCI-X 533", "133 MHz PCI-X 533",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PciXDevice:
    """PCI-X of a device: what is set, and after ``status_bits`` what it was designed for.

    ``max_read`` and ``designed_max_cumulative_read`` are in bytes, ``max_split`` is a number of split
    transactions. ``address`` is the ``BUS:DEVICE.FUNCTION`` that the device saw last.
    """

    dperr_enabled: bool
    relaxed_ordering: bool
    max_read: int
    max_split: int
    address: str
    status_bits: tuple[str, ...]
    designed_max_read: int
    designed_max_split: int
    designed_max_cumulative_read: int

    @classmethod
    def read(cls, at: Reader) -> PciXDevice:
        command, status = at.u16(2), at.u32(4)
        return cls(
            dperr_enabled=flag(command, 0),
            relaxed_ordering=flag(command, 1),
            max_read=512 << bits(command, 2, 2),
            max_split=_SPLITS[bits(command, 4, 3)],
            address=_address(status),
            status_bits=names_of(status >> 16, _STATUS),
            designed_max_read=512 << bits(status, 21, 2),
            designed_max_split=_SPLITS[bits(status, 23, 3)],
            designed_max_cumulative_read=1024 << bits(status, 26, 3),
        )


@dataclass(frozen=True, slots=True)
class PciXBridge:
    """PCI-X of a bridge: the states of its two buses, and its buffers for split transactions.

    Capacities and commitment limits are in units of 128 bytes. ``secondary_frequency`` is the mode of the
    secondary bus: ``conventional`` PCI, or a clock.
    """

    secondary_status_bits: tuple[str, ...]
    secondary_frequency: str
    address: str
    status_bits: tuple[str, ...]
    upstream_capacity: int
    upstream_commitment_limit: int
    downstream_capacity: int
    downstream_commitment_limit: int

    @classmethod
    def read(cls, at: Reader) -> PciXBridge:
        secondary, status, upstream, downstream = at.u16(2), at.u32(4), at.u32(8), at.u32(12)
        return cls(
            secondary_status_bits=names_of(secondary, _BRIDGE_STATUS),
            secondary_frequency=name_of(bits(secondary, 6, 4), _FREQUENCIES),
            address=_address(status),
            status_bits=names_of(status >> 16, _BRIDGE_STATUS),
            upstream_capacity=bits(upstream, 0, 16),
            upstream_commitment_limit=bits(upstream, 16, 16),
            downstream_capacity=bits(downstream, 0, 16),
            downstream_commitment_limit=bits(downstream, 16, 16),
        )


@dataclass(frozen=True, slots=True)
class PciX:
    """PCI-X: ``bridge`` for a function whose header is a bridge's, else ``device``; the other is ``None``."""

    device: PciXDevice | None
    bridge: PciXBridge | None

    @classmethod
    def read(cls, at: Reader) -> PciX:
        if header_type(at.config) == _BRIDGE:
            return cls(None, PciXBridge.read(at))
        return cls(PciXDevice.read(at), None)


def _address(status: int) -> str:
    return f"{bits(status, 8, 8):02x}:{bits(status, 3, 5):02x}.{bits(status, 0, 3)}"
