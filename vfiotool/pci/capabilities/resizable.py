"""Resizable BARs, of a function and of its VFs.

Source: PCI Express Base sections 7.8.6 and 7.8.7.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import Reader, read_blocks

_MIB = 1 << 20
_MOST_BARS = 6
_SIZES = 44  # 1 MiB to 8 EiB


@dataclass(frozen=True, slots=True)
class ResizableSize:
    """A BAR of Resizable BAR: its size and the supported sizes, in bytes.

    ``size`` is ``None`` if the register's value is undefined.
    """

    bar: int
    size: int | None
    sizes: tuple[int, ...]

    @classmethod
    def read(cls, at: Reader) -> ResizableSize:
        able, control = at.u32(0), at.u32(4)
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


def _resizable_sizes(at: Reader) -> tuple[ResizableSize, ...]:
    count = min(at.u32(8) >> 5 & 7, _MOST_BARS)
    return read_blocks(ResizableSize.read, at, first=4, size=8, count=count)
