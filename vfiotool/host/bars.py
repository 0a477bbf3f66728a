"""The address ranges of devices: their BARs and expansion ROMs."""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree
from vfiotool.pci.config_space import HEADER_SIZE, STANDARD_SIZE, capabilities, header_type

# include/linux/ioport.h
_IORESOURCE_IO = 0x100
_IORESOURCE_PREFETCH = 0x2000
_IORESOURCE_MEM_64 = 0x100000

# include/uapi/linux/pci_regs.h
_COMMAND, _COMMAND_IO, _COMMAND_MEMORY = 0x04, 0x1, 0x2
_BARS = 0x10
_ROM, _ROM_OF_BRIDGE, _ROM_ENABLE = 0x30, 0x38, 0x1
_ENHANCED_ALLOCATION = 0x14

ROM = 6
"""The index of the expansion ROM among the BARs."""


@dataclass(frozen=True, slots=True)
class Bar:
    """An address range of a device: ``index`` 0 to 5, or 6 for the expansion ROM. ``size`` is in bytes.

    ``start`` is 0 if the kernel found no address for it. ``disabled`` is True if the device does not answer
    there, by its registers, and ``None`` if that is unknown, as of a VF, whose BARs its PF enables.
    """

    index: int
    start: int
    size: int
    type: str
    prefetchable: bool
    disabled: bool | None = None


def read_bars(tree: Tree, address: str, registers: bytes = b"") -> tuple[Bar, ...]:
    """Return the address ranges of a device. The read takes no lock.

    ``registers`` are its configuration space, if it answers and is no VF: they say what is disabled.
    """
    bars = []
    resource = tree.find(f"{device_path(address)}/resource") or ""
    for index, line in enumerate(resource.splitlines()[: ROM + 1]):
        try:
            start, end, flags = (int(number, 16) for number in line.split())
        except ValueError:
            continue
        if end:
            prefetchable = bool(flags & _IORESOURCE_PREFETCH)
            kind = _bar_type(index, flags)
            is_disabled = _is_disabled(registers, index, kind)
            bars.append(Bar(index, start, end - start + 1, kind, prefetchable, is_disabled))
    return tuple(bars)


def _is_disabled(registers: bytes, index: int, kind: str) -> bool | None:
    """Return True if the command register, the bit of a ROM or an address of zero disables a range.

    With Enhanced Allocation a BAR of zero is in use.
    """
    if len(registers) < HEADER_SIZE:
        return None
    command = int.from_bytes(registers[_COMMAND : _COMMAND + 2], "little")
    if not command & (_COMMAND_IO if kind == "io" else _COMMAND_MEMORY):
        return True
    if index == ROM:
        at = _ROM_OF_BRIDGE if header_type(registers) else _ROM
        return not registers[at] & _ROM_ENABLE
    at = _BARS + 4 * index
    low = registers[at] & (~3 if kind == "io" else ~15)  # without the bits of the type
    if low or any(registers[at + 1 : at + (8 if kind == "memory64" else 4)]):
        return False
    if len(registers) < STANDARD_SIZE:
        return None
    return not any(one.id == _ENHANCED_ALLOCATION and not one.extended for one in capabilities(registers))


def _bar_type(index: int, flags: int) -> str:
    if flags & _IORESOURCE_IO:
        return "io"
    if index == ROM:
        return "rom"
    return "memory64" if flags & _IORESOURCE_MEM_64 else "memory32"
