"""The header of configuration space, decoded from bytes: the part before the capabilities.

Source: PCI Local Bus 3.0 sections 6.1 and 6.2; PCI-to-PCI Bridge Architecture 1.2 section 3.2. Bits have the
names that include/uapi/linux/pci_regs.h gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vfiotool.pci.capability_reader import names_of
from vfiotool.pci.config_space import HEADER_SIZE, HEADER_TYPE, MULTIFUNCTION, header_type, is_silent

_COMMAND = (
    "io", "memory", "master", "special", "invalidate", "vga_palette", "parity", "wait", "serr", "fast_back",
    "intx_disable",
)  # fmt: skip
_STATUS = (
    "imm_ready", "", "", "interrupt", "cap_list", "66mhz", "udf", "fast_back", "parity", "", "",
    "sig_target_abort", "rec_target_abort", "rec_master_abort", "sig_system_error", "detected_parity",
)  # fmt: skip
_BRIDGE_CONTROL = ("parity", "serr", "isa", "vga", "", "master_abort", "bus_reset", "fast_back")
_ENDPOINT, _BRIDGE = 0, 1
_FIRST_BAR = 0x10
_BARS = {_ENDPOINT: 6, _BRIDGE: 2}
_ROM = {_ENDPOINT: 0x30, _BRIDGE: 0x38}
_IO, _PREFETCHABLE = 1, 8
_MEMORY64 = 4
_IO_PAGE, _MEMORY_PAGE = 1 << 12, 1 << 20


@dataclass(frozen=True, slots=True)
class BaseAddress:
    """The bus address in a BAR: ``type`` is ``memory32``, ``memory64`` or ``io``."""

    index: int
    address: int
    type: str
    prefetchable: bool


@dataclass(frozen=True, slots=True)
class Window:
    """A range of bus addresses that a bridge forwards; both ends are included."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BridgeHeader:
    """The fields of a bridge: its buses and its windows. A window is ``None`` if it is closed."""

    primary_bus: int
    secondary_bus: int
    subordinate_bus: int
    io: Window | None
    memory: Window | None
    prefetchable_memory: Window | None
    control: int
    control_bits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The registers of a header; ``command_bits`` and ``status_bits`` name the bits that are set.

    ``header_type`` is 0 for an endpoint, 1 for a bridge, 2 for CardBus; ``cache_line_size`` is in bytes;
    ``interrupt_pin`` is 1 for INTA, 0 for none. ``bars`` has only the BARs that are not zero. A field that
    this type of header lacks is ``None``.
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


def read_header(config: bytes) -> Header | None:
    """Return the decoded header, or ``None`` if it is truncated or no device answers."""
    if len(config) < HEADER_SIZE or is_silent(config):
        return None
    kind = header_type(config) or 0
    command, status = _u16(config, 0x04), _u16(config, 0x06)
    rom = _u32(config, _ROM[kind]) if kind in _ROM else None
    return Header(
        vendor_id=_u16(config, 0x00),
        device_id=_u16(config, 0x02),
        subsystem_vendor_id=_u16(config, 0x2C) if kind == _ENDPOINT else None,
        subsystem_device_id=_u16(config, 0x2E) if kind == _ENDPOINT else None,
        revision=config[0x08],
        class_code=_u32(config, 0x08) >> 8,
        command=command,
        command_bits=names_of(command, _COMMAND),
        status=status,
        status_bits=names_of(status, _STATUS),
        header_type=kind,
        multifunction=bool(config[HEADER_TYPE] & MULTIFUNCTION),
        cache_line_size=config[0x0C] * 4,
        latency_timer=config[0x0D],
        bars=tuple(_bars(config, _BARS.get(kind, 0))),
        rom_address=None if rom is None else rom & ~0x7FF,
        rom_enabled=None if rom is None else bool(rom & 1),
        interrupt_line=config[0x3C],
        interrupt_pin=config[0x3D],
        bridge=_bridge(config) if kind == _BRIDGE else None,
    )


def _bars(config: bytes, count: int) -> Iterator[BaseAddress]:
    index = 0
    while index < count:
        low = _u32(config, _FIRST_BAR + 4 * index)
        if low & _IO:
            yield BaseAddress(index, low & ~3, "io", prefetchable=False)
        elif low & 6 == _MEMORY64 and index + 1 < count:
            high = _u32(config, _FIRST_BAR + 4 * index + 4)
            yield BaseAddress(index, high << 32 | low & ~15, "memory64", bool(low & _PREFETCHABLE))
            index += 1
        elif low:
            yield BaseAddress(index, low & ~15, "memory32", bool(low & _PREFETCHABLE))
        index += 1


def _bridge(config: bytes) -> BridgeHeader:
    control = _u16(config, 0x3E)
    return BridgeHeader(
        primary_bus=config[0x18],
        secondary_bus=config[0x19],
        subordinate_bus=config[0x1A],
        io=_io_window(config),
        memory=_window(_u16(config, 0x20) << 16, _u16(config, 0x22) << 16, _MEMORY_PAGE),
        prefetchable_memory=_prefetchable_window(config),
        control=control,
        control_bits=names_of(control, _BRIDGE_CONTROL),
    )


def _io_window(config: bytes) -> Window | None:
    """Decode the I/O window: a byte has bits 15 to 12; if its low bits are 1, a register has 16 more."""
    base, limit = config[0x1C], config[0x1D]
    upper_base, upper_limit = (_u16(config, 0x30), _u16(config, 0x32)) if base & 0xF == 1 else (0, 0)
    return _window(upper_base << 16 | base << 8, upper_limit << 16 | limit << 8, _IO_PAGE)


def _prefetchable_window(config: bytes) -> Window | None:
    """Decode the prefetchable window: bits 31 to 20; if the low bits are 1, a register has 32 more."""
    base, limit = _u16(config, 0x24), _u16(config, 0x26)
    upper_base, upper_limit = (_u32(config, 0x28), _u32(config, 0x2C)) if base & 0xF == 1 else (0, 0)
    return _window(upper_base << 32 | base << 16, upper_limit << 32 | limit << 16, _MEMORY_PAGE)


def _window(base: int, limit: int, page: int) -> Window | None:
    """Return a window of whole pages, or ``None`` if it is closed: its base is above its limit."""
    start, end = base & ~(page - 1), limit | (page - 1)
    return Window(start, end) if start <= end else None


def _u16(config: bytes, at: int) -> int:
    return int.from_bytes(config[at : at + 2], "little")


def _u32(config: bytes, at: int) -> int:
    return int.from_bytes(config[at : at + 4], "little")
