"""Decoded configuration space as text: the header, and a line for each part of a capability."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vfiotool.pci.bridge_headers import BridgeHeader, CardBusHeader, Window
from vfiotool.pci.capabilities.decoding import DecodedCapability
from vfiotool.pci.header import Header
from vfiotool.pci.ids import ids_text
from vfiotool.pci.vpd import Vpd
from vfiotool.render.terminal import print_facts, print_title, whole

_NONE = "-"
_HEXADECIMAL = (
    *("_id", "address", "data", "mask", "pending", "table_offset", "pba_offset", "max_offset", "vf_bars"),
    *("_bus", "bus_base", "bus_limit", "rid_base", "rid_limit", "_upper", "tc_map", "syndromes"),
)
_LONGEST_WORD = 24  # of a value that is not folded
_DIGITS = 8  # of a word of data: a register
_TYPES = ("endpoint", "bridge", "CardBus bridge")
_PINS = (_NONE, "A", "B", "C", "D")


def print_config(
    title: str,
    header: Header | None,
    capabilities: Iterable[DecodedCapability],
    unavailable: Iterable[str],
    vpd: Vpd | None = None,
) -> None:
    """Print the header, the capabilities and the VPD, and the parts that were not readable."""
    print_title(title)
    facts = list(_header_facts(header)) if header is not None else []
    for one in capabilities:
        label = f"cap {one.offset:#05x}"
        for part, fields in _parts(one.name, one.content):
            facts.append((label, f"{part}: {fields}" if fields else part))
            label = ""
    facts += _vpd_facts(vpd) if vpd is not None else []
    print_facts([*facts, *(("unavailable", name) for name in unavailable)])


def _vpd_facts(vpd: Vpd) -> Iterator[tuple[str, str]]:
    yield "vpd", vpd.product_name or "no product name"
    for field in (*vpd.read_only, *vpd.read_write):
        yield "", f"{field.keyword} {field.name}: {field.value}"
    if vpd.checksum_ok is not None:
        yield "", f"checksum {'right' if vpd.checksum_ok else 'wrong'}"
    if not vpd.complete:
        yield "", "the data have no end, or a part that makes no sense"


def _header_facts(header: Header) -> Iterator[tuple[str, str]]:
    ids = ids_text(header.vendor_id, header.device_id)
    yield "id", f"{ids} rev {header.revision:02x}, class {header.class_code:06x}"
    if header.subsystem_vendor_id is not None and header.subsystem_device_id is not None:
        yield "subsystem", ids_text(header.subsystem_vendor_id, header.subsystem_device_id)
    yield "command", f"{header.command:#06x} {' '.join(header.command_bits)}"
    yield "status", _status(header.status, header.status_bits, header.devsel)
    kind = _TYPES[header.header_type] if header.header_type < len(_TYPES) else "unknown"
    several = ", multifunction" if header.multifunction else ""
    yield "header", f"type {header.header_type} ({kind}{several})"
    yield "timing", ", ".join(_timing(header))
    if header.bist_capable:
        result = "running" if header.bist_start else f"result {header.bist_code:#x}"
        yield "self-test", result
    for bar in header.bars:
        prefetchable = ", prefetchable" if bar.prefetchable else ""
        yield f"bar {bar.index}", f"{bar.address:#x}, {bar.type}{prefetchable}"
    if header.rom_address:
        yield "rom", f"{header.rom_address:#x}, {'enabled' if header.rom_enabled else 'not enabled'}"
    if header.bridge is not None:
        yield from _bridge_facts(header.bridge)
    if header.cardbus is not None:
        yield from _cardbus_facts(header.cardbus)
    pin = _PINS[header.interrupt_pin] if header.interrupt_pin < len(_PINS) else str(header.interrupt_pin)
    yield "interrupt", f"pin {pin}, line {header.interrupt_line}"


def _timing(header: Header) -> Iterator[str]:
    yield f"cache line of {header.cache_line_size} bytes"
    yield f"latency timer {header.latency_timer}"
    if header.min_gnt_ns:
        yield f"at least {header.min_gnt_ns} ns"
    if header.max_lat_ns:
        yield f"every {header.max_lat_ns} ns"


def _status(status: int, names: Iterable[str], devsel: str | None) -> str:
    return " ".join([f"{status:#06x}", *names, *([f"devsel={devsel}"] if devsel else [])])


def _bridge_facts(bridge: BridgeHeader) -> Iterator[tuple[str, str]]:
    yield "buses", _buses(bridge.primary_bus, bridge.secondary_bus, bridge.subordinate_bus)
    yield "io", _window(bridge.io)
    yield "memory", _window(bridge.memory)
    yield "prefetchable", _window(bridge.prefetchable_memory)
    yield "control", f"{bridge.control:#06x} {' '.join(bridge.control_bits)}"
    yield "secondary", _status(bridge.secondary_status, bridge.secondary_status_bits, bridge.secondary_devsel)


def _cardbus_facts(bridge: CardBusHeader) -> Iterator[tuple[str, str]]:
    yield "buses", _buses(bridge.primary_bus, bridge.card_bus, bridge.subordinate_bus)
    yield "memory 0", _window(bridge.memory_0)
    yield "memory 1", _window(bridge.memory_1)
    yield "io 0", _window(bridge.io_0)
    yield "io 1", _window(bridge.io_1)
    yield "control", f"{bridge.control:#06x} {' '.join(bridge.control_bits)}"
    yield "secondary", _status(bridge.secondary_status, bridge.secondary_status_bits, bridge.secondary_devsel)
    if bridge.legacy_mode_base is not None:
        yield "legacy ports", f"{bridge.legacy_mode_base:#06x}"


def _buses(primary: int, secondary: int, subordinate: int) -> str:
    return f"{secondary:#04x} to {subordinate:#04x}, primary {primary:#04x}"


def _window(window: Window | None) -> str:
    return _NONE if window is None else f"{window.start:#x} to {window.end:#x}"


def _parts(name: str, record: Any) -> Iterator[tuple[str, str]]:
    """Yield a record's name and plain fields, then those of each inner record. ``None`` is left out."""
    values = {one: getattr(record, one) for one in record.__dataclass_fields__}
    inner = {one: _records(value) for one, value in values.items()}
    plain = [one for one, value in values.items() if value is not None and not inner[one]]
    yield name, "; ".join(_fields({one: values[one] for one in plain}))
    for one, records in inner.items():
        for record in records:
            yield from _parts(_words(one), record)


def _fields(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield each field with its value, then the names of those that are true, false or empty."""
    names: dict[str, list[str]] = {"yes": [], "no": [], "none": []}
    for name, value in values.items():
        if isinstance(value, bool):
            names["yes" if value else "no"].append(_words(name))
        elif value in ("", ()):
            names["none"].append(_words(name))
        else:
            yield whole(f"{_words(name)} ") + _text(name, value)
    for kind, found in names.items():
        if found:
            yield whole(f"{kind}: ") + ", ".join(map(whole, found))


def _records(value: object) -> list[Any]:
    several = value if isinstance(value, tuple) else (value,)
    return [one for one in several if hasattr(one, "__dataclass_fields__")]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(name, one) for one in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}" if name.endswith(_HEXADECIMAL) else str(value)
    text = _NONE if value is None else str(value)
    if name == "data":
        return " ".join(text[at : at + _DIGITS] for at in range(0, len(text), _DIGITS))
    return whole(text) if len(text) <= _LONGEST_WORD else text
