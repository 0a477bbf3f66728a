"""The headers of bridges: the fields of PCI-to-PCI bridges and of CardBus bridges, decoded from bytes.

Source: PCI-to-PCI Bridge Architecture 1.2 section 3.2; for CardBus, the PCI to CardBus bridge registers of
the PC Card Standard. Bits have the names that include/uapi/linux/pci_regs.h gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.capability_reader import names_of

STATUS_BITS = (
    "imm_ready", "", "", "interrupt", "cap_list", "66mhz", "udf", "fast_back", "parity", "", "",
    "sig_target_abort", "rec_target_abort", "rec_master_abort", "sig_system_error", "detected_parity",
)  # fmt: skip
_SECONDARY_STATUS = ("", "", "", "", "", *STATUS_BITS[5:6], "", *STATUS_BITS[7:])
_BRIDGE_CONTROL = (
    "parity", "serr", "isa", "vga", "vga_16bit", "master_abort", "bus_reset", "fast_back",
    "pri_discard_timer", "sec_discard_timer", "discard_timer_status", "discard_timer_serr_en",
)  # fmt: skip
_CARDBUS_CONTROL = (
    "parity", "serr", "isa", "vga", "", "master_abort", "cb_reset", "16bit_int",
    "prefetch_mem0", "prefetch_mem1", "post_writes",
)  # fmt: skip
_DEVSEL = ("fast", "medium", "slow", None)
_IO_PAGE, _MEMORY_PAGE = 1 << 12, 1 << 20
_CARDBUS_IO_PAGE, _CARDBUS_MEMORY_PAGE = 1 << 2, 1 << 12


@dataclass(frozen=True, slots=True)
class Window:
    """A range of bus addresses that a bridge forwards; both ends are included.

    ``bits`` is the width of the addresses that its registers can hold: 16, 32 or 64.
    """

    start: int
    end: int
    bits: int


@dataclass(frozen=True, slots=True)
class BridgeHeader:
    """The fields of a bridge: its buses, its windows, and the state of its secondary bus.

    A window is ``None`` if it is closed, or if its two registers disagree on their width.
    ``secondary_devsel`` is the response time of the secondary bus; see ``Header.devsel``.
    """

    primary_bus: int
    secondary_bus: int
    subordinate_bus: int
    io: Window | None
    memory: Window | None
    prefetchable_memory: Window | None
    control: int
    control_bits: tuple[str, ...]
    sec_latency_timer: int
    secondary_status: int
    secondary_status_bits: tuple[str, ...]
    secondary_devsel: str | None


@dataclass(frozen=True, slots=True)
class CardBusHeader:
    """The fields of a CardBus bridge: its buses, its four windows, and the state of its CardBus side.

    A window is ``None`` if it is closed. ``legacy_mode_base`` is the register of the 16-bit PC Card
    interface's ports, and ``None`` if only the first 64 bytes could be read.
    """

    primary_bus: int
    card_bus: int
    subordinate_bus: int
    latency_timer: int
    memory_0: Window | None
    memory_1: Window | None
    io_0: Window | None
    io_1: Window | None
    control: int
    control_bits: tuple[str, ...]
    secondary_status: int
    secondary_status_bits: tuple[str, ...]
    secondary_devsel: str | None
    legacy_mode_base: int | None


def devsel(status: int) -> str | None:
    """Return the response time in a status register, or ``None`` for the undefined value."""
    return _DEVSEL[status >> 9 & 3]


def read_bridge(config: bytes) -> BridgeHeader:
    """Decode the header of a PCI-to-PCI bridge from at least 64 bytes."""
    control, status = u16(config, 0x3E), u16(config, 0x1E)
    return BridgeHeader(
        primary_bus=config[0x18],
        secondary_bus=config[0x19],
        subordinate_bus=config[0x1A],
        io=_io_window(config),
        memory=_memory_window(config),
        prefetchable_memory=_prefetchable_window(config),
        control=control,
        control_bits=names_of(control, _BRIDGE_CONTROL),
        sec_latency_timer=config[0x1B],
        secondary_status=status,
        secondary_status_bits=names_of(status, _SECONDARY_STATUS),
        secondary_devsel=devsel(status),
    )


def read_cardbus(config: bytes) -> CardBusHeader:
    """Decode the header of a CardBus bridge from at least 64 bytes."""
    control, status = u16(config, 0x3E), u16(config, 0x16)
    return CardBusHeader(
        primary_bus=config[0x18],
        card_bus=config[0x19],
        subordinate_bus=config[0x1A],
        latency_timer=config[0x1B],
        memory_0=_window(u32(config, 0x1C), u32(config, 0x20), _CARDBUS_MEMORY_PAGE, 32),
        memory_1=_window(u32(config, 0x24), u32(config, 0x28), _CARDBUS_MEMORY_PAGE, 32),
        io_0=_cardbus_io_window(config, 0x2C),
        io_1=_cardbus_io_window(config, 0x34),
        control=control,
        control_bits=names_of(control, _CARDBUS_CONTROL),
        secondary_status=status,
        secondary_status_bits=names_of(status, _SECONDARY_STATUS),
        secondary_devsel=devsel(status),
        legacy_mode_base=u16(config, 0x44) if len(config) >= 0x46 else None,
    )


def _cardbus_io_window(config: bytes, at: int) -> Window | None:
    """Decode an I/O window of a CardBus bridge: without bit 0 of the base, only the low 16 bits count."""
    base, limit = u32(config, at), u32(config, at + 4)
    bits = 32 if base & 1 else 16
    return _window(base % (1 << bits), limit % (1 << bits), _CARDBUS_IO_PAGE, bits)


def _io_window(config: bytes) -> Window | None:
    """Decode the I/O window: a byte has bits 15 to 12; if its low bits are 1, a register has 16 more."""
    base, limit = config[0x1C], config[0x1D]
    kind = _window_type(base, limit)
    if kind is None:
        return None
    upper_base, upper_limit = (u16(config, 0x30), u16(config, 0x32)) if kind else (0, 0)
    start, end = upper_base << 16 | (base & 0xF0) << 8, upper_limit << 16 | (limit & 0xF0) << 8
    return _window(start, end, _IO_PAGE, 32 if kind else 16)


def _memory_window(config: bytes) -> Window | None:
    base, limit = u16(config, 0x20), u16(config, 0x22)
    if _window_type(base, limit) != 0:
        return None
    return _window(base << 16, limit << 16, _MEMORY_PAGE, 32)


def _prefetchable_window(config: bytes) -> Window | None:
    """Decode the prefetchable window: bits 31 to 20; if the low bits are 1, a register has 32 more."""
    base, limit = u16(config, 0x24), u16(config, 0x26)
    kind = _window_type(base, limit)
    if kind is None:
        return None
    upper_base, upper_limit = (u32(config, 0x28), u32(config, 0x2C)) if kind else (0, 0)
    start, end = upper_base << 32 | (base & 0xFFF0) << 16, upper_limit << 32 | (limit & 0xFFF0) << 16
    return _window(start, end, _MEMORY_PAGE, 64 if kind else 32)


def _window_type(base: int, limit: int) -> int | None:
    """Return 0 for registers of the short form, 1 for the long form, ``None`` for anything else."""
    kind = base & 0xF
    return kind if kind == limit & 0xF and kind in (0, 1) else None


def _window(base: int, limit: int, page: int, bits: int) -> Window | None:
    """Return a window of whole pages, or ``None`` if it is closed: its base is above its limit."""
    start, end = base & ~(page - 1), limit | (page - 1)
    return Window(start, end, bits) if start <= end else None


def u16(config: bytes, at: int) -> int:
    """Return two bytes as a number."""
    return int.from_bytes(config[at : at + 2], "little")


def u32(config: bytes, at: int) -> int:
    """Return four bytes as a number."""
    return int.from_bytes(config[at : at + 4], "little")
