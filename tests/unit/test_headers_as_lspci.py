"""Headers of all types, compared with what lspci 3.15 prints of the same bytes.

``lspci-3.15-headers.json`` has the bytes of each header and the text of ``lspci -vvv``. Of each type, the
first ten are patterns: in pattern ``k``, bit ``n`` is bit ``k`` of the number ``n``, so that no two bits can
be mistaken for each other. The others are random, with windows whose registers agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from vfiotool.pci.bridge_headers import BridgeHeader, CardBusHeader, Window
from vfiotool.pci.header import BaseAddress, Header, read_header

RECORDED = json.loads((Path(__file__).parents[1] / "data/lspci-3.15-headers.json").read_text())
MEMORY = {"memory32": "32-bit", "memory64": "64-bit", "memory1m": "low-1M", "reserved": "type 3"}


def sign(value: bool) -> str:
    return "+" if value else "-"


def flags(names: Iterable[str], **shown: str) -> str:
    """Return lspci's flags, each with + if its name here is among ``names``."""
    have = set(names)
    return " ".join(f"{flag.replace('_', '/')}{sign(name in have)}" for flag, name in shown.items())


def status(names: Iterable[str], devsel: str | None, serr: str) -> str:
    first = flags(names, FastB2B="fast_back", ParErr="parity")
    aborts = {
        ">TAbort": "sig_target_abort",
        "<TAbort": "rec_target_abort",
        "<MAbort": "rec_master_abort",
        serr: "sig_system_error",
        "<PERR": "detected_parity",
    }
    return f"{first} DEVSEL={devsel or '??'} {flags(names, **aborts)}"


def common(it: Header) -> Iterator[str]:
    command = {
        "I_O": "io", "Mem": "memory", "BusMaster": "master", "SpecCycle": "special", "MemWINV": "invalidate",
        "VGASnoop": "vga_palette", "ParErr": "parity", "Stepping": "wait", "SERR": "serr",
        "FastB2B": "fast_back", "DisINTx": "intx_disable",
    }  # fmt: skip
    yield f"Control: {flags(it.command_bits, **command)}"
    yield f"Status: {flags(it.status_bits, Cap='cap_list', **{'66MHz': '66mhz'}, UDF='udf')} "
    yield f"{status(it.status_bits, it.devsel, '>SERR')} {flags(it.status_bits, INTx='interrupt')}"
    if it.subsystem_vendor_id not in (None, 0, 0xFFFF):
        yield f"Subsystem: {it.subsystem_vendor_id:04x}:{it.subsystem_device_id:04x}"
    if "master" in it.command_bits:
        yield f"Latency: {it.latency_timer}"
        if it.min_gnt_ns and it.max_lat_ns:
            yield f"({it.min_gnt_ns}ns min, {it.max_lat_ns}ns max)"
        if it.cache_line_size:
            yield f"Cache Line Size: {it.cache_line_size} bytes"
    if it.bist_capable:
        yield "BIST is running" if it.bist_start else f"BIST result: {it.bist_code:02x}"
    if it.rom_address:
        yield f"Expansion ROM at {it.rom_address:08x}"
    last = {0: 5, 1: 1, 2: 0}[it.header_type]
    yield from (region(bar) for bar in it.bars if bar.address and bar.index < last)


def region(it: BaseAddress) -> str:
    if it.type == "io":
        return f"Region {it.index}: I/O ports at {it.address:04x}"
    kind = f"({MEMORY[it.type]}, {'' if it.prefetchable else 'non-'}prefetchable)"
    return f"Region {it.index}: Memory at {it.address:0{16 if it.address >> 32 else 8}x} {kind}"


def bridge(it: BridgeHeader) -> Iterator[str]:
    yield f"Bus: primary={it.primary_bus:02x}, secondary={it.secondary_bus:02x}, "
    yield f"subordinate={it.subordinate_bus:02x}, sec-latency={it.sec_latency_timer}"
    yield f"Secondary status: {flags(it.secondary_status_bits, **{'66MHz': '66mhz'})} "
    yield status(it.secondary_status_bits, it.secondary_devsel, "<SERR")
    control = {
        "Parity": "parity", "SERR": "serr", "NoISA": "isa", "VGA": "vga", "VGA16": "vga_16bit",
        "MAbort": "master_abort", ">Reset": "bus_reset", "FastB2B": "fast_back",
        "PriDiscTmr": "pri_discard_timer", "SecDiscTmr": "sec_discard_timer",
        "DiscTmrStat": "discard_timer_status", "DiscTmrSERREn": "discard_timer_serr_en",
    }  # fmt: skip
    yield f"BridgeCtl: {flags(it.control_bits, **control)}"


def open_windows(it: BridgeHeader) -> list[str]:
    windows = (
        ("I/O", it.io, 4),
        ("Memory", it.memory, 8),
        ("Prefetchable memory", it.prefetchable_memory, 8),
    )
    return [f"{name} behind bridge: {bounds(one, digits)} [size" for name, one, digits in windows if one]


def bounds(it: Window, digits: int) -> str:
    digits = 16 if it.bits == 64 else 8 if it.bits == 32 else digits
    return f"{it.start:0{digits}x}-{it.end:0{digits}x}"


def cardbus(it: CardBusHeader) -> Iterator[str]:
    yield f"Bus: primary={it.primary_bus:02x}, secondary={it.card_bus:02x}, "
    yield f"subordinate={it.subordinate_bus:02x}, sec-latency={it.latency_timer}"
    control = {
        "Parity": "parity", "SERR": "serr", "ISA": "isa", "VGA": "vga", "MAbort": "master_abort",
        ">Reset": "cb_reset", "16bInt": "16bit_int", "PostWrite": "post_writes",
    }  # fmt: skip
    yield f"BridgeCtl: {flags(it.control_bits, **control)}"
    if it.legacy_mode_base:
        yield f"16-bit legacy interface ports at {it.legacy_mode_base:04x}"


def test_there_are_patterns_and_random_headers_of_each_type() -> None:
    types = [bytes.fromhex(raw)[0x0E] & 0x7F for raw, _ in RECORDED]
    assert [types.count(kind) for kind in (0, 1, 2)] == [22, 22, 22]


@pytest.mark.parametrize(("raw", "text"), RECORDED, ids=[str(number) for number in range(len(RECORDED))])
def test_a_header_reads_as_lspci_reads_it(raw: str, text: str) -> None:
    it = read_header(bytes.fromhex(raw))
    if it is None:
        pytest.fail("the header is not decoded")
    fragments = list(common(it))
    assert (it.bridge is None, it.cardbus is None) == (it.header_type != 1, it.header_type != 2)
    if it.bridge is not None:
        fragments += bridge(it.bridge)
        shown = re.findall(
            r"(?:I/O|Memory|Prefetchable memory) behind bridge: [0-9a-f]+-[0-9a-f]+ \[size", text
        )
        assert shown == open_windows(it.bridge)
    if it.cardbus is not None:
        fragments += cardbus(it.cardbus)
        check_cardbus_windows(it.cardbus, text)
    for fragment in fragments:
        assert fragment in text


def check_cardbus_windows(it: CardBusHeader, text: str) -> None:
    windows = {
        "Memory window 0": it.memory_0,
        "Memory window 1": it.memory_1,
        "I/O window 0": it.io_0,
        "I/O window 1": it.io_1,
    }
    for name, window in windows.items():
        found = re.search(rf"{name}: ([0-9a-f]+)-([0-9a-f]+)", text)
        assert found is not None
        start, end = (int(number, 16) for number in found.groups())
        assert (None if window is None else (window.start, window.end)) == (
            (start, end) if start <= end else None
        )
    for number in (0, 1):
        prefetchable = re.search(rf"Memory window {number}: \S+( \[disabled\])? \(prefetchable\)", text)
        assert (prefetchable is not None) == (f"prefetch_mem{number}" in it.control_bits)
