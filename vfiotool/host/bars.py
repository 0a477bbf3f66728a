"""The address ranges of devices: their BARs and expansion ROMs."""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree

# include/linux/ioport.h
_IORESOURCE_IO = 0x100
_IORESOURCE_PREFETCH = 0x2000
_IORESOURCE_MEM_64 = 0x100000

ROM = 6
"""The index of the expansion ROM among the BARs."""


@dataclass(frozen=True, slots=True)
class Bar:
    """An address range of a device: ``index`` 0 to 5, or 6 for the expansion ROM. ``size`` is in bytes."""

    index: int
    start: int
    size: int
    type: str
    prefetchable: bool


def read_bars(tree: Tree, address: str) -> tuple[Bar, ...]:
    """Return the address ranges of a device. The read takes no lock."""
    bars = []
    resource = tree.find(f"{device_path(address)}/resource") or ""
    for index, line in enumerate(resource.splitlines()[: ROM + 1]):
        try:
            start, end, flags = (int(number, 16) for number in line.split())
        except ValueError:
            continue
        if end:
            prefetchable = bool(flags & _IORESOURCE_PREFETCH)
            bars.append(Bar(index, start, end - start + 1, _bar_type(index, flags), prefetchable))
    return tuple(bars)


def _bar_type(index: int, flags: int) -> str:
    if flags & _IORESOURCE_IO:
        return "io"
    if index == ROM:
        return "rom"
    return "memory64" if flags & _IORESOURCE_MEM_64 else "memory32"
