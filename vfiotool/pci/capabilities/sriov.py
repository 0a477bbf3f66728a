"""SR-IOV.

Source: PCI Express Base section 9.3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader

_PAGE = 4096
_MOST_BARS = 6


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
