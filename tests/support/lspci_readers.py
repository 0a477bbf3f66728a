"""What compares a text of lspci with a value of ``vfiotool config --json``, for each kind of value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}


@dataclass(frozen=True, slots=True)
class Reader:
    """``pattern`` matches the texts of lspci; ``agrees`` returns True if a text and a value say the same."""

    pattern: str
    agrees: Callable[[str, Any], bool]


def has_name(name: str) -> Reader:
    """Return the reader of a sign that tells whether a list has a name."""
    return Reader("[+-]", lambda text, names: (text == "+") is (name in names))


def _has_number(wanted: int) -> Reader:
    return Reader("[+-]", lambda text, numbers: (text == "+") is (wanted in numbers))


def reading(pattern: str, read: Callable[[str], Any]) -> Reader:
    """Return the reader of texts that ``read`` turns into the value."""
    return Reader(pattern, lambda text, value: bool(read(text) == value))


def one_of(values: Mapping[str, Any], reserved: str = "") -> Reader:
    """Return the reader of texts that each stand for a value.

    ``reserved`` is a pattern: the number in it stands for the value ``reserved N``.
    """

    def read(text: str) -> Any:
        return values[text] if text in values else "reserved " + "".join(re.findall(r"\d+", text))

    texts = [re.escape(text) for text in sorted(values, key=len, reverse=True)]
    return reading("|".join([*texts, *filter(None, [reserved])]), read)


def size(text: str) -> int | None:
    """Return bytes from a size such as ``64MB``, or ``None`` if it is unknown."""
    found = re.fullmatch(r"(\d+)([KMGTPE]?)B?", text)
    return int(found[1]) << _UNITS[found[2]] if found else None


def ranges(text: str) -> list[int]:
    """Return the numbers of a list such as ``1, 4-6``."""
    found: list[int] = []
    for one in filter(None, re.split("[, ]+", text)):
        first, _, last = one.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def latency(text: str) -> int:
    """Return nanoseconds from a latency such as ``2us``."""
    found = re.fullmatch(r"(\d+)(ns|us|ms|s)", text)
    assert found is not None, text
    return int(found[1]) * {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9}[found[2]]


def _spaced(text: str) -> str:
    """Return lspci's text with a space before each unit, and without a zero after the point."""
    return re.sub(r"(\d)(?:\.0)?([a-z]|dB)", r"\1 \2", text)


def _is_known_as(text: str, value: str) -> bool:
    return value.startswith("reserved ") if text in ("Unknown", "Reserved") else value == _spaced(text)


def _is_margin(text: str, value: str) -> bool:
    shown = re.sub(r"(\d)mV\((\w+)-swing\)/?", r"\1 mV (\2 swing), ", text).strip(", ")
    return value.startswith("reserved ") if text == "Unknown" else value.lower() == shown.lower()


def _is_speed(text: str, value: str) -> bool:
    """Return True if the speeds are equal; lspci 3.15 takes the code 8 for 128 GT/s, and the code is 7."""
    if text.lower() == "unknown":
        return value in ("unknown", "128.0 GT/s")
    return (
        value == "unknown"
        if text == "128GT/s"
        else float(value.split()[0]) == float(text.removesuffix("GT/s"))
    )


def _are_ranges(text: str, value: list[str]) -> bool:
    """Return True if the ranges are equal, or if lspci has no name for them."""
    return text == "Unknown" or value == re.findall(
        "[A-D]", text.removeprefix("Range ").replace("Not Supported", "")
    )


def _reach(text: str, value: list[str]) -> bool:
    """Return True if the highest speed is lspci's, which names no other."""
    highest = re.findall(r"[0-9.]+", text)
    return (not value) if not highest else bool(value) and float(value[-1].split()[0]) == float(highest[-1])


def _is_window(text: str, value: dict[str, int] | None) -> bool:
    """Return True if the windows are equal; lspci shows a closed window as one that ends before its start."""
    start, end = (int(one, 16) for one in text.split("-"))
    return start > end if value is None else (value["start"], value["end"]) == (start, end)


def _is_frequency(text: str, value: str) -> bool:
    """Return True if the frequencies are equal; lspci reads three of the four bits."""
    shown = "conventional" if text == "conv" else _spaced(text).replace("M Hz", " MHz")
    return text.startswith("?") or value.startswith((re.sub(r"(\d)MHz", r"\1 MHz", shown), "reserved "))


def _is_pin(text: str, value: int) -> bool:
    """Return True if the pins are equal; lspci 3.15 shows the letter after the pin's own."""
    if text.startswith("#"):
        return int(text[1:]) == value
    return value in (ord(text) - ord("A") + 1, ord(text) - ord("A"))


def _unless_reserved(text: str, value: int | None) -> bool:
    """Return True if the latencies are equal; lspci computes one for a reserved scale, too."""
    return value is None or int(text) == value


def _at_most(text: str, value: int | None) -> bool:
    return (
        value is not None
        and (text == "Greater than 254ns") == (value == 255)
        and (
            text == "Unimplemented"
            or value == 255
            or text == f"{value}ns"
            or (text == "Unknown" and value == 0)
        )
    )


def _first_lanes(lanes: list[int]) -> list[int]:
    """Return the lanes that lspci shows: it reads half of the register."""
    return [lane for lane in lanes if lane < 16]


def _without_last_range(devices: list[int]) -> list[int]:
    """Return what lspci shows of a list of devices: of a range that reaches device 31, only its start."""
    while {30, 31} <= set(devices):
        last = next(one for one in range(30, -1, -1) if one - 1 not in devices)
        devices = [one for one in devices if one <= last]
    return devices


number = Reader(r"\d+", lambda text, value: type(value) is int and int(text) == value)
hexadecimal = Reader("[0-9a-f]+", lambda text, value: type(value) is int and int(text, 16) == value)
sign = Reader("[+-]", lambda text, value: value is (text == "+"))

_ARBITRATIONS = {name: name for name in ("WRR32", "WRR64", "WRR128", "TWRR128", "WRR256")} | {
    "Fixed": "fixed"
}
_WIDTHS = {f"x{lanes}": f"x{lanes}" for lanes in (1, 2, 4, 8, 16)} | {"Dynamic": "dynamic"}
_L0P_LATENCIES = {
    "Less than 1us": "less than 1 us",
    "1us to less than 2us": "1 us to 2 us",
    "2us to less than 4us": "2 us to 4 us",
    "4us to less than 8us": "4 us to 8 us",
    "8us to less than 16us": "8 us to 16 us",
    "16us to less than 32us": "16 us to 32 us",
    "32us-64us": "32 us to 64 us",
    "More than 64us": "more than 64 us",
}
# lspci reads two of the three bits.
_FLIT_TYPES = {
    "any": ("any", "idle"),
    "any non-IDLE": ("any but idle", "payload with a sequence number"),
    "only payload": ("payload", "payload with one sequence number"),
    "only NOP": ("NOP", "reserved 7"),
}
_FLIT_ERRORS = {
    "random": "random",
    "correctable single group": "correctable, one group",
    "correctable three groups": "correctable, three groups",
    "uncorrectable": "uncorrectable",
}
_INJECTION_STATES = {name: name for name in ("not started", "started", "completed", "error")}
_STEERING_TABLES = {
    "No steering table available": "none",
    "Steering table in TPH capability structure": "capability",
    "Steering table in MSI-X table": "MSI-X table",
    "Reserved steering table location": "reserved 3",
}
_TS_MODES = {
    "PCI Express": "PCI Express",
    "Training Set Messages": "training set messages",
    "Alternate Protocol Negotiation": "alternate protocol negotiation",
}
_LINK_BEHAVIORS = {
    "Full Equalization required": "full equalization",
    "Equalization bypass to highest rate support": "equalization bypass to highest rate",
    "No Equalization Needed": "no equalization needed",
    "Modified TS1/TS2 Ordered Sets supported": "modified TS1/TS2 ordered sets",
}
_BLOCKS = {"Empty": "empty", "MCAP": "MCAP", "MDVS": "MDVS"}
_CXL_BLOCKS = {
    "component registers": "component registers",
    "BAR virtualization": "BAR virtualization",
    "CXL device registers": "CXL device registers",
    "CPMU registers": "CPMU registers",
    "vendor-specific": "vendor specific",
}
_SHOWN = ("Config", "Egress", "Internal")
# lspci reads four bits more than the register has.
_ELEMENTS = ("configuration", "egress", "internal", *(f"reserved {code}" for code in range(3, 16)))
_CONSECUTIVE = {"none": 0, "pseudo-random": 7}
_HEADER_ENCRYPTIONS = {"no": "none"} | {name: name for name in ("17:2", "25:2", "33:2", "41:2")}

_PORT_TYPES = {
    "Endpoint": "endpoint",
    "Legacy Endpoint": "legacy endpoint",
    "Root Port": "root port",
    "Upstream Port": "upstream port",
    "Downstream Port": "downstream port",
    "PCI-Express to PCI/PCI-X Bridge": "PCIe to PCI bridge",
    "PCI/PCI-X to PCI-Express Bridge": "PCI to PCIe bridge",
    "Root Complex Integrated Endpoint": "root complex integrated endpoint",
    "Root Complex Event Collector": "root complex event collector",
}
_EMERGENCY = {
    "Not Supported": "not supported",
    "Dev Specific": "device specific",
    "Form Factor Dev Specific": "form factor or device specific",
    "Reserved": "reserved 3",
}
_CROSSLINKS = {
    "unsupported": "not supported",
    "Upstream Port": "upstream port",
    "Downstream Port": "downstream port",
    "incomplete": "not complete",
}
_COMPONENTS = {
    "Link Down - Not Determined": "link down, not determined",
    "Link Down - Not Present": "link down, not present",
    "Link Down - Present": "link down, present",
    "Link Up - Present": "link up, present",
    "Link Up - Present and DRS Received": "link up, present, DRS received",
}

_PLACES = (
    {f"BAR {number}": f"BAR {number}" for number in range(6)}
    | {f"VF-BAR {number}": f"VF BAR {number}" for number in range(6)}
    | {
        "resource behind function": "behind the bridge",
        "not indicated": "not indicated",
        "expansion ROM": "expansion ROM",
        "reserved": "reserved",
    }
)
_PROPERTIES = {
    "memory space, non-prefetchable": "memory",
    "memory space, prefetchable": "prefetchable memory",
    "I/O space": "I/O",
    "VF memory space, prefetchable": "prefetchable memory of VFs",
    "VF memory space, non-prefetchable": "memory of VFs",
    "allocation behind bridge, non-prefetchable memory": "memory behind the bridge",
    "allocation behind bridge, prefetchable memory": "prefetchable memory behind the bridge",
    "allocation behind bridge, I/O space": "I/O behind the bridge",
    "memory space resource unavailable for use": "unavailable memory",
    "I/O space resource unavailable for use": "unavailable I/O",
    "entry unavailable for use": "unavailable",
    "entry unavailable for use, PrimaryProperties should be used": "unavailable",
}
_HT_TYPES = {
    "Switch": "switch",
    "Interrupt Discovery and Configuration": "interrupt discovery and configuration",
    "UnitID Clumping": "unit id clumping",
    "Extended Configuration Space Access": "extended configuration space access",
    "Address Mapping": "address mapping",
    "DirectRoute": "direct route",
    "VCSet": "VCSet",
    "Retry Mode": "retry mode",
    "X86 (reserved)": "X86",
    "#1a": "generation 3",
    "#1c": "power management",
} | {
    f"#{number:02x}": f"type {number:#04x}"
    for number in (*range(4, 8), *range(9, 16), 0x1B, 0x1D, 0x1E, 0x1F)
}
_HT_FREQUENCIES = {
    "200MHz": "200 MHz", "300MHz": "300 MHz", "400MHz": "400 MHz", "500MHz": "500 MHz", "600MHz": "600 MHz",
    "800MHz": "800 MHz", "1.0GHz": "1.0 GHz", "1.2GHz": "1.2 GHz", "1.4GHz": "1.4 GHz", "1.6GHz": "1.6 GHz",
    "[a]": "1.8 GHz", "[b]": "2.0 GHz", "[c]": "2.2 GHz", "[d]": "2.4 GHz", "[e]": "2.6 GHz",
    "Vend": "vendor specific",
}  # fmt: skip
_VIRTIO_TYPES = {
    "CommonCfg": "common configuration",
    "Notify": "notifications",
    "ISR": "ISR status",
    "DeviceCfg": "device configuration",
    "SharedMemory": "shared memory",
}

READERS: dict[str, Reader] = {
    "words": reading("[0-9a-f]{8}(?: [0-9a-f]{8}){3}", str),
    "serial": reading("[0-9a-f]{2}(?:-[0-9a-f]{2}){7}", str),
    "lanes": Reader(r"\d+(?: \d+)*", lambda text, value: ranges(text) == _first_lanes(value)),
    "no lanes": Reader("0", lambda _text, value: not _first_lanes(value)),
    "devices": Reader(
        r"\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*", lambda text, value: ranges(text) == _without_last_range(value)
    ),
    "no devices": reading(r"00000000 \[none\]", lambda _text: []),
    "none": reading(r"ff-00 \[none\]", lambda _text: None),
    "sizes": reading(r"(?:\d+[KMGTPE]?B ?)*", lambda text: [size(one) for one in text.split()]),
    "size": reading(r"\d+[KMGTPE]?B|<unknown>", size),
    "page sizes": reading("[0-9a-f]+", lambda text: [4096 << n for n in range(32) if int(text, 16) >> n & 1]),
    "pages": reading("[0-9a-f]+", lambda text: 4096 * int(text, 16)),
    "page shift": reading("[0-9a-f]+", lambda text: 4096 << int(text, 16)),
    "depth": reading("[0-9a-f]+", lambda text: int(text, 16) or 32),  # 0 means 32
    "16 bytes": reading("[0-9a-f]+", lambda text: 16 * int(text, 16)),
    "64-bit": reading("32-bit|64-bit", lambda text: f"memory{text[:2]}"),
    "prefetchable": reading("non-prefetchable|prefetchable", lambda text: text == "prefetchable"),
    "count": Reader(r"\d+", lambda text, value: isinstance(value, list) and len(value) == int(text)),
    "latency": Reader(r"\d+", _unless_reserved),
    "time": reading(r"\d+|<error>", lambda text: None if text == "<error>" else int(text)),
    "granularity": Reader(r"Unimplemented|Unknown|Greater than 254ns|\d+ns", _at_most),
    "speed": Reader(r"[Uu]nknown|[0-9.]+GT/s", _is_speed),
    "clock": one_of({"100ns": "100 ns"}, r"\?\?\d"),
    "arbitration": one_of(_ARBITRATIONS, r"\?\?\d"),
    "element": reading(
        r"\?\?\d+|\w+", lambda text: _ELEMENTS[int(text[2:]) & 15 if "?" in text else _SHOWN.index(text)]
    ),
    "link type": one_of({"Config": "configuration", "MemMapped": "memory"}),
    "width": one_of(_WIDTHS, r"Unknown \(\d+\)"),
    "L0p latency": one_of(_L0P_LATENCIES),
    "granted lanes": one_of(
        {"all": "all lanes", "even": "even lanes", "odd": "odd lanes", "mismatch": "mismatch"}
    ),
    "flit type": Reader(
        "|".join(sorted(_FLIT_TYPES, key=len, reverse=True)), lambda text, value: value in _FLIT_TYPES[text]
    ),
    "flit error": one_of(_FLIT_ERRORS),
    "injection": one_of(_INJECTION_STATES),
    "steering": one_of(_STEERING_TABLES),
    "TS mode": one_of(_TS_MODES, r"\?\?\d"),
    "behavior": one_of(_LINK_BEHAVIORS),
    "block": one_of(_BLOCKS, r"Reserved \(\d+\)"),
    "CXL block": one_of(_CXL_BLOCKS),
    "trigger": one_of(
        dict(zip("0123", ("disabled", "fatal", "fatal and non-fatal", "reserved 3"), strict=True))
    ),
    "reason": one_of(
        {"00": "uncorrectable error", "01": "ERR_NONFATAL", "02": "ERR_FATAL", "03": "extension"}
    ),
    "extension": one_of(
        {"00": "RP PIO error", "01": "software trigger", "02": "reserved 2", "03": "reserved 3"}
    ),
    "aggregation": one_of({"-": 1, "=2": 2, "=4": 4, "=8": 8}),
    "header encryption": one_of(_HEADER_ENCRYPTIONS, r"\?\?\d+"),
    "algorithm": Reader(
        "AES-GCM-256-96b|reserved",
        lambda text, value: value == text or (text == "reserved" and value.startswith("reserved ")),
    ),
    "state": Reader(
        r"insecure|secure|reserved|\?\?\d+",
        lambda text, value: value == {"reserved": "reserved 1"}.get(text, text.replace("??", "reserved ")),
    ),
    "media": one_of({"Volatile": "volatile", "Non-volatile": "non-volatile", "CDAT": "CDAT"}),
    "memory class": one_of({"DRAM": "DRAM", "Storage": "storage", "CDAT": "CDAT"}),
    "256 MiB": reading("[0-9a-f]+", lambda text: int(text, 16) & ~0xFFFFFFF),
    "hex size": reading("0x[0-9a-f]+", lambda text: int(text, 16)),
    "power": reading(r"\d+", lambda text: 1 << int(text)),
    "no overlay": reading(r"\d+", lambda _text: None),
    "streams": Reader(r"\d+", lambda text, value: value in (int(text), int(text) + 1)),
    "Default": reading("Default", lambda _text: True),
    "consecutive": reading(
        r"none|pseudo-random|\d+|Unknown \(\d+\)",
        lambda text: _CONSECUTIVE[text] if text in _CONSECUTIVE else int("".join(re.findall(r"\d", text))),
    ),
    "lower half": Reader("[0-9a-f]+", lambda text, value: int(text, 16) == value & 0xFFFF),
    "low 4 bits": Reader(r"\d+", lambda text, value: int(text) == value & 15),
    "microseconds": reading(r"\d+(?:ns|us|ms|s)", lambda text: latency(text) // 1000),
    "not reported": reading("Not Reported", lambda _text: None),
    "byte": reading("[0-9a-f]{2}", lambda text: int(text, 16)),
    "MiB base": reading("[0-9a-f]{4}", lambda text: (int(text, 16) & 0xFFF0) << 16),
    "MiB limit": reading("[0-9a-f]{4}", lambda text: (int(text, 16) & 0xFFF0) << 16 | 0xFFFFF),
    **{f"mode {one}": _has_number(one) for one in range(3)},
    "inverted": Reader("[+-]", lambda text, value: value is (text == "-")),
    "supported": reading("supported", lambda _text: True),
    "support": reading("support", lambda _text: True),
    "error": reading("<error>", lambda _text: None),
    "class": Reader("[0-9a-f]{4}", lambda text, value: int(text, 16) == value >> 8),
    "interface": Reader("[0-9a-f]{2}", lambda text, value: int(text, 16) == value & 0xFF),
    "pin": Reader(r"[A-E]|#\d+", _is_pin),
    "no pin": reading("", lambda _text: 0),
    "address": reading("[0-9a-f]+|<unassigned>", lambda text: 0 if text.startswith("<") else int(text, 16)),
    "memory": one_of(
        {"32-bit": "memory32", "64-bit": "memory64", "low-1M": "memory1m", "type 3": "reserved"}
    ),
    "ports": reading("", lambda _text: "io"),
    "true": reading("", lambda _text: True),
    "false": reading("", lambda _text: False),
    "closed": reading("[0-9a-f]+-[0-9a-f]+", lambda _text: None),
    "power state": reading("[0-3]", lambda text: ("D0", "D1", "D2", "D3hot")[int(text)]),
    "devsel": one_of({"fast": "fast", "medium": "medium", "slow": "slow", "??": None}),
    "window": Reader("[0-9a-f]+-[0-9a-f]+", _is_window),
    "prefetchable 0": Reader("", lambda _text, value: "prefetch_mem0" in value),
    "prefetchable 1": Reader("", lambda _text, value: "prefetch_mem1" in value),
    "system error": Reader("", lambda _text, value: "sig_system_error" in value),
    "port type": one_of(_PORT_TYPES, r"Unknown type \d+"),
    "spaced": reading(r"<?\d+[nu]s|-?[0-9.]+dB|unlimited", _spaced),
    "exit latency": Reader(
        r"<\d+[nu]s|unlimited",
        lambda text, value: value[0] == ">" if text == "unlimited" else value == _spaced(text),
    ),
    "watts": reading(
        r"[0-9.]+W|>600W", lambda text: None if text[0] == ">" else round(float(text[:-1]) * 1000)
    ),
    "ASPM": reading("not supported|Disabled|L0s L1|L0s|L1", lambda text: re.findall("L0s|L1", text)),
    "if reported": Reader("[+-]", lambda text, value: value is None or value is (text == "+")),
    "indicator": one_of({"On": "on", "Blink": "blink", "Off": "off", "Unknown": "reserved 0"}),
    "timeout ranges": Reader("Not Supported|Unknown|Range [A-D]+", _are_ranges),
    "timeout": Reader(r"Unknown|[0-9.]+[mu]?s to [0-9.]+[mu]?s", _is_known_as),
    "OBFF": one_of(
        {
            "Not Supported": [],
            "Via message": ["message"],
            "Via WAKE#": ["WAKE#"],
            "Via message/WAKE#": ["message", "WAKE#"],
        }
    ),
    "enabled OBFF": one_of(
        {
            "Disabled": "disabled",
            "Via message A": "message A",
            "Via message B": "message B",
            "Via WAKE#": "WAKE#",
        }
    ),
    "emergency": one_of(_EMERGENCY),
    "cache lines": one_of(
        {
            "Not Supported": "not supported",
            "64byte cachelines": "64 bytes",
            "128byte cachelines": "128 bytes",
            "Reserved": "reserved 3",
        }
    ),
    "TPH": Reader("[+-]", lambda text, value: (text == "+") is value.startswith("TPH")),
    "extended TPH": Reader("[+-]", lambda text, value: (text == "+") is value.endswith("extended TPH")),
    "speeds": Reader(r"Unknown|2\.5GT/s|2\.5-\d+GT/s", _reach),
    "margin": Reader(r"Unknown|Normal Operating Range|[0-9-]+mV[^ ,]+", _is_margin),
    "preset": Reader(r"Unknown|-?[0-9.]+dB de-emphasis, [0-9.]+dB preshoot", _is_known_as),
    "crosslink": one_of(_CROSSLINKS),
    "component": Reader(
        "|".join(sorted((*_COMPONENTS, "Reserved"), key=len, reverse=True)),
        lambda text, value: (
            value == _COMPONENTS.get(text) or (text == "Reserved" and value.startswith("reserved"))
        ),
    ),
    "text": reading(r"[^ ,]+", str),
    "rates": reading(r"[^ ]+", lambda text: [] if text == "<none>" else text.split(",")),
    "frequency": Reader(r"conv|\d+MHz|\?\d", _is_frequency),
    "complexity": Reader("simple|bridge", lambda text, value: (text == "bridge") is ("complex" in value)),
    "place": one_of(_PLACES),
    "property": one_of(
        _PROPERTIES | {f"[{number:02x}]": f"reserved {number:#04x}" for number in range(8, 0xFD)}
    ),
    "HT slave": reading("", lambda _text: "slave or primary"),
    "HT host": reading("", lambda _text: "host or secondary"),
    "HT type": one_of(_HT_TYPES),
    "HT width": one_of(
        {f"{bits}bit": f"{bits} bits" for bits in (2, 4, 8, 16, 32)}
        | {"N/C": "not connected", "[2]": "reserved 2", "[6]": "reserved 6"}
    ),
    "HT frequency": one_of(_HT_FREQUENCIES),
    "virtio type": one_of(_VIRTIO_TYPES),
    "GB per channel": reading(
        r"[0-9.]+GB/chan|Unlimited",
        lambda text: None if text == "Unlimited" else float(text.removesuffix("GB/chan")),
    ),
    "MHz": reading(
        r"\d+MHz|Disabled|Unlimited",
        lambda text: int(text[:-3]) if text.endswith("MHz") else {"Disabled": 0, "Unlimited": None}[text],
    ),
    # lspci shows the frequency of gear 1 where there is a limit.
    "limit": Reader(r"\d+MHz|Unlimited", lambda text, value: (text == "Unlimited") is (value is None)),
    "BCLK": one_of(
        {"Disabled": "disabled", "115MHz": "115 MHz", "130MHz": "130 MHz", "Unlimited": "unlimited"}
    ),
    "SATA revision": reading(r"\d+\.\d+", str),
    "no value": reading("", lambda _text: None),
    "units of 128 bytes": reading(r"\d+", lambda text: int(text) * 128),
    "words of 4 bytes": reading("[0-9a-f]+", lambda text: int(text, 16) * 4),
}
