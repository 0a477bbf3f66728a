"""The extended capabilities for address translation in the device: ATS, PRI, PASID.

Source: PCI Express Base sections 10.5 and 7.8.9.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class AddressTranslation:
    """Address Translation Services: the depth of the invalidate queue, the smallest translation in bytes."""

    enabled: bool
    queue_depth: int
    page_aligned: bool
    global_invalidate: bool
    smallest_translation: int

    @classmethod
    def read(cls, at: Reader) -> AddressTranslation:
        able, control = at.u16(4), at.u16(6)
        return cls(
            enabled=bool(control & 1 << 15),
            queue_depth=(able & 0x1F) or 32,
            page_aligned=bool(able & 1 << 5),
            global_invalidate=bool(able & 1 << 6),
            smallest_translation=_PAGE << (control & 0x1F),
        )


@dataclass(frozen=True, slots=True)
class PageRequests:
    """Page Request Interface: ``capacity`` and ``allocation`` are maxima of outstanding requests.

    ``pasid_required`` is True if a response must have the request's PASID.
    """

    enabled: bool
    reset: bool
    stopped: bool
    response_failure: bool
    unexpected_group: bool
    pasid_required: bool
    capacity: int
    allocation: int

    @classmethod
    def read(cls, at: Reader) -> PageRequests:
        control, status = at.u16(4), at.u16(6)
        return cls(
            enabled=bool(control & 1),
            reset=bool(control & 1 << 1),
            stopped=bool(status & 1 << 8),
            response_failure=bool(status & 1),
            unexpected_group=bool(status & 1 << 1),
            pasid_required=bool(status & 1 << 15),
            capacity=at.u32(8),
            allocation=at.u32(12),
        )


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
