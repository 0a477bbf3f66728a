"""The standard Vendor Specific capability, with the contents that virtio devices and Intel devices have.

Source: PCI Local Bus 3.0 appendix H; Virtual I/O Device 1.3 section 4.1.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capabilities.intel_capabilities import IntelCapabilities
from vfiotool.pci.capability_reader import Reader, if_complete

_INTEL_VENDOR, _VIRTIO_VENDOR = 0x8086, 0x1AF4
_VIRTIO_DEVICES = range(0x1000, 0x1080)
_VIRTIO_SIZE, _VIRTIO_NOTIFY_SIZE, _VIRTIO_64BIT_SIZE = 16, 20, 24
_NOTIFY, _SHARED_MEMORY = 2, 8
_VIRTIO_TYPES = {
    1: "common configuration",
    2: "notifications",
    3: "ISR status",
    4: "device configuration",
    5: "PCI configuration access",
    8: "shared memory",
    9: "vendor data",
}


@dataclass(frozen=True, slots=True)
class VirtioStructure:
    """Where a structure of a virtio device lies: ``offset`` and ``length`` in bytes, inside a BAR.

    ``notify_off_multiplier`` is ``None`` except for notifications.
    """

    type: str
    bar: int
    id: int
    offset: int
    length: int
    notify_off_multiplier: int | None

    @classmethod
    def read(cls, at: Reader) -> VirtioStructure:
        size, kind = at.u8(2), at.u8(3)
        is_wide = kind == _SHARED_MEMORY and size >= _VIRTIO_64BIT_SIZE
        upper_offset, upper_length = (at.u32(16), at.u32(20)) if is_wide else (0, 0)
        has_multiplier = kind == _NOTIFY and size >= _VIRTIO_NOTIFY_SIZE
        return cls(
            type=_VIRTIO_TYPES.get(kind, f"type {kind}"),
            bar=at.u8(4),
            id=at.u8(5),
            offset=upper_offset << 32 | at.u32(8),
            length=upper_length << 32 | at.u32(12),
            notify_off_multiplier=at.u32(16) if has_multiplier else None,
        )


@dataclass(frozen=True, slots=True)
class VendorSpecific:
    """Vendor Specific: ``length`` in bytes, with the header's three; ``data`` after them, in hexadecimal.

    ``virtio`` and ``intel`` are what the data mean in a device of this vendor, and ``None`` in others.
    """

    length: int
    data: str
    virtio: VirtioStructure | None
    intel: IntelCapabilities | None

    @classmethod
    def read(cls, at: Reader) -> VendorSpecific:
        length = at.u8(2)
        vendor, device = (int.from_bytes(at.config[start : start + 2], "little") for start in (0, 2))
        is_virtio = vendor == _VIRTIO_VENDOR and device in _VIRTIO_DEVICES and length >= _VIRTIO_SIZE
        return cls(
            length=length,
            data=at.hex(3, length),
            virtio=if_complete(VirtioStructure.read, at) if is_virtio else None,
            intel=if_complete(IntelCapabilities.read, at) if vendor == _INTEL_VENDOR else None,
        )
