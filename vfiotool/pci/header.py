"""The header of configuration space, decoded from bytes: the part before the capabilities.

Source: PCI Local Bus 3.0 sections 6.1 and 6.2. Bits have the names that include/uapi/linux/pci_regs.h gives
them. ``bridge_headers`` decodes what only bridges have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vfiotool.pci.bridge_headers import (
    STATUS_BITS,
    BridgeHeader,
    CardBusHeader,
    devsel,
    read_bridge,
    read_cardbus,
    u16,
    u32,
)
from vfiotool.pci.capability_reader import names_of
from vfiotool.pci.config_space import HEADER_SIZE, HEADER_TYPE, MULTIFUNCTION, header_type
from vfiotool.pci.identity import is_silent

_COMMAND = (
    "io", "memory", "master", "special", "invalidate", "vga_palette", "parity", "wait", "serr", "fast_back",
    "intx_disable",
)  # fmt: skip
_ENDPOINT, _BRIDGE, _CARDBUS = 0, 1, 2
_FIRST_BAR = 0x10
_BARS = {_ENDPOINT: 6, _BRIDGE: 2, _CARDBUS: 1}
_ROM = {_ENDPOINT: 0x30, _BRIDGE: 0x38}
_SUBSYSTEM = {_ENDPOINT: 0x2C, _CARDBUS: 0x40}
_IO, _PREFETCHABLE = 1, 8
_MEMORY64 = 4
_MEMORY_TYPES = ("memory32", "memory1m", "memory32", "reserved")
_ONES = 0xFFFF_FFFF
_QUARTER_MICROSECOND_NS = 250


@dataclass(frozen=True, slots=True)
class BaseAddress:
    """The bus address in a BAR: ``type`` is ``memory32``, ``memory64`` or ``io``.

    Two types are of the past: ``memory1m`` lies below 1 MiB, and ``reserved`` has no meaning.
    """

    index: int
    address: int
    type: str
    prefetchable: bool


@dataclass(frozen=True, slots=True)
class Header:
    """The registers of a header; ``command_bits`` and ``status_bits`` name the bits that are set.

    ``header_type`` is 0 for an endpoint, 1 for a bridge, 2 for CardBus; of another, only the fields are
    decoded that all types have. ``cache_line_size`` is in bytes; ``interrupt_pin`` is 1 for INTA, 0 for none.
    ``bars`` has only the BARs that are not zero. ``devsel`` is the response time in ``status``: ``fast``,
    ``medium``, ``slow``, or ``None`` for the undefined value. ``bist_start`` is True while the self-test
    runs, and ``bist_code`` is its result; both mean something only if ``bist_capable``. ``min_gnt_ns`` and
    ``max_lat_ns`` are the bus times that an endpoint asks for, 0 for no wish. A field that this type of
    header lacks, or that lies behind the bytes that were read, is ``None``.
    """

    vendor_id: int
    device_id: int
    subsystem_vendor_id: int | None
    subsystem_device_id: int | None
    revision: int
    class_code: int
    command: int
    command_bits: tuple[str, ...]
    status: int
    status_bits: tuple[str, ...]
    header_type: int
    multifunction: bool
    cache_line_size: int
    latency_timer: int
    bars: tuple[BaseAddress, ...]
    rom_address: int | None
    rom_enabled: bool | None
    interrupt_line: int
    interrupt_pin: int
    bridge: BridgeHeader | None
    cardbus: CardBusHeader | None
    devsel: str | None
    bist_capable: bool
    bist_start: bool
    bist_code: int
    min_gnt_ns: int | None
    max_lat_ns: int | None


def read_header(config: bytes) -> Header | None:
    """Return the decoded header, or ``None`` if it is truncated or no device answers."""
    if len(config) < HEADER_SIZE or is_silent(config):
        return None
    kind = header_type(config) or 0
    command, status = u16(config, 0x04), u16(config, 0x06)
    rom = _rom(config, kind)
    subsystem = _subsystem(config, kind)
    bist = config[0x0F]
    return Header(
        vendor_id=u16(config, 0x00),
        device_id=u16(config, 0x02),
        subsystem_vendor_id=None if subsystem is None else subsystem & 0xFFFF,
        subsystem_device_id=None if subsystem is None else subsystem >> 16,
        revision=config[0x08],
        class_code=u32(config, 0x08) >> 8,
        command=command,
        command_bits=names_of(command, _COMMAND),
        status=status,
        status_bits=names_of(status, STATUS_BITS),
        header_type=kind,
        multifunction=bool(config[HEADER_TYPE] & MULTIFUNCTION),
        cache_line_size=config[0x0C] * 4,
        latency_timer=config[0x0D],
        bars=tuple(_bars(config, _BARS.get(kind, 0))),
        rom_address=None if rom is None else rom & ~0x7FF,
        rom_enabled=None if rom is None else bool(rom & 1),
        interrupt_line=config[0x3C],
        interrupt_pin=config[0x3D],
        bridge=read_bridge(config) if kind == _BRIDGE else None,
        cardbus=read_cardbus(config) if kind == _CARDBUS else None,
        devsel=devsel(status),
        bist_capable=bool(bist & 1 << 7),
        bist_start=bool(bist & 1 << 6),
        bist_code=bist & 0xF,
        min_gnt_ns=config[0x3E] * _QUARTER_MICROSECOND_NS if kind == _ENDPOINT else None,
        max_lat_ns=config[0x3F] * _QUARTER_MICROSECOND_NS if kind == _ENDPOINT else None,
    )


def _subsystem(config: bytes, kind: int) -> int | None:
    """Return the vendor and the id of the board, or ``None`` if the header has none in these bytes."""
    at = _SUBSYSTEM.get(kind)
    return None if at is None or len(config) < at + 4 else u32(config, at)


def _rom(config: bytes, kind: int) -> int | None:
    """Return the ROM register, or ``None`` if this type of header has none, or if it reads as ones."""
    rom = u32(config, _ROM[kind]) if kind in _ROM else _ONES
    return None if rom == _ONES else rom


def _bars(config: bytes, count: int) -> Iterator[BaseAddress]:
    index = 0
    while index < count:
        low = u32(config, _FIRST_BAR + 4 * index)
        if low == _ONES:  # no register answers
            pass
        elif low & _IO:
            yield BaseAddress(index, low & ~3, "io", prefetchable=False)
        elif low & 6 == _MEMORY64 and index + 1 < count:
            high = u32(config, _FIRST_BAR + 4 * index + 4)
            yield BaseAddress(index, high << 32 | low & ~15, "memory64", bool(low & _PREFETCHABLE))
            index += 1
        elif low:
            yield BaseAddress(index, low & ~15, _MEMORY_TYPES[low >> 1 & 3], bool(low & _PREFETCHABLE))
        index += 1
