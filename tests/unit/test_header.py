from __future__ import annotations

import contextlib
import io
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import config_spaces, examples
from vfiotool.pci.bridge_headers import BridgeHeader, CardBusHeader, Window
from vfiotool.pci.capabilities.decoding import decode
from vfiotool.pci.config_space import EXTENDED_SIZE, HEADER_SIZE
from vfiotool.pci.header import BaseAddress, Header, read_header
from vfiotool.render.config_space import print_config
from vfiotool.render.documents import to_json
from vfiotool.testing import config_space


def decoded(config: bytes) -> Header:
    header = read_header(config)
    assert header is not None
    return header


def with_bytes(config: bytes, **at: tuple[str, Any]) -> bytes:
    """Return configuration space with these numbers; a key is ``x`` and the offset in hexadecimal."""
    changed = bytearray(config)
    for offset, (form, value) in at.items():
        struct.pack_into(f"<{form}", changed, int(offset[1:], 16), value)
    return bytes(changed)


def bridge(**at: tuple[str, Any]) -> BridgeHeader:
    found = decoded(with_bytes(config_space(header_type=1), **at)).bridge
    assert found is not None
    return found


def test_an_endpoint() -> None:
    config = config_space(vendor=0x8086, device=0x10D3, class_code=0x020000, revision=3, header_type=0x80)
    header = decoded(
        with_bytes(
            config,
            x04=("H", 0x0507),
            x06=("H", 0x2010),
            x0c=("B", 16),
            x0d=("B", 64),
            x0f=("B", 0x85),
            x2c=("H", 0x1AF4),
            x2e=("H", 0x1100),
            x30=("I", 0xFEB0_0001),
            x3c=("B", 11),
            x3d=("B", 2),
            x3e=("B", 1),
            x3f=("B", 2),
        )
    )
    assert header == Header(
        vendor_id=0x8086,
        device_id=0x10D3,
        subsystem_vendor_id=0x1AF4,
        subsystem_device_id=0x1100,
        revision=3,
        class_code=0x020000,
        command=0x0507,
        command_bits=("io", "memory", "master", "serr", "intx_disable"),
        status=0x2010,
        status_bits=("cap_list", "rec_master_abort"),
        header_type=0,
        multifunction=True,
        cache_line_size=64,
        latency_timer=64,
        bars=(),
        rom_address=0xFEB0_0000,
        rom_enabled=True,
        interrupt_line=11,
        interrupt_pin=2,
        bridge=None,
        cardbus=None,
        devsel="fast",
        bist_capable=True,
        bist_start=False,
        bist_code=5,
        min_gnt_ns=250,
        max_lat_ns=500,
    )


def test_bars_of_each_type() -> None:
    header = decoded(
        with_bytes(
            config_space(),
            x10=("I", 0xFEA0_0000),
            x14=("I", 0x0000_C041),
            x18=("Q", 0x12_3456_000C),
            x24=("I", 0xF000_0004),  # the last cannot have an upper half
        )
    )
    assert header.bars == (
        BaseAddress(0, 0xFEA0_0000, "memory32", prefetchable=False),
        BaseAddress(1, 0xC040, "io", prefetchable=False),
        BaseAddress(2, 0x12_3456_0000, "memory64", prefetchable=True),
        BaseAddress(5, 0xF000_0000, "memory32", prefetchable=False),
    )


def test_a_bridge_with_16_and_32_bit_windows() -> None:
    assert bridge(
        x18=("B", 1),
        x19=("B", 2),
        x1a=("B", 7),
        x1b=("B", 64),
        x1e=("H", 0x2220),
        x1c=("B", 0x10),
        x1d=("B", 0x20),
        x20=("H", 0xFDC0),
        x22=("H", 0xFDD0),
        x24=("H", 0xFE80),
        x26=("H", 0xFE90),
        x3e=("H", 0x0C1A),
    ) == BridgeHeader(
        primary_bus=1,
        secondary_bus=2,
        subordinate_bus=7,
        io=Window(0x1000, 0x2FFF, 16),
        memory=Window(0xFDC0_0000, 0xFDDF_FFFF, 32),
        prefetchable_memory=Window(0xFE80_0000, 0xFE9F_FFFF, 32),
        control=0x0C1A,
        control_bits=("serr", "vga", "vga_16bit", "discard_timer_status", "discard_timer_serr_en"),
        sec_latency_timer=64,
        secondary_status=0x2220,
        secondary_status_bits=("66mhz", "rec_master_abort"),
        secondary_devsel="medium",
    )


def test_a_bridge_with_32_and_64_bit_windows() -> None:
    found = bridge(
        x1c=("B", 0x11),
        x1d=("B", 0x21),
        x30=("H", 0x0001),
        x32=("H", 0x0002),
        x24=("H", 0x0001),
        x26=("H", 0xFFF1),
        x28=("I", 0x38),
        x2c=("I", 0x39),
    )
    assert found.io == Window(0x1_1000, 0x2_2FFF, 32)
    assert found.prefetchable_memory == Window(0x38_0000_0000, 0x39_FFFF_FFFF, 64)


def test_closed_windows_are_none() -> None:
    found = bridge(
        x1c=("B", 0xF0), x20=("H", 0xFFF0), x24=("H", 0xFFF1), x26=("H", 0x0001), x28=("I", 0xFFFF_FFFF)
    )
    assert (found.io, found.memory, found.prefetchable_memory) == (None, None, None)


@pytest.mark.parametrize(
    "registers",
    [
        {"x1c": ("B", 0x10), "x1d": ("B", 0x21)},  # 16 and 32 bits
        {"x1c": ("B", 0x12), "x1d": ("B", 0x22)},  # an undefined width
    ],
)
def test_io_registers_that_disagree_are_no_window(registers: dict[str, tuple[str, Any]]) -> None:
    assert bridge(**registers).io is None


def test_memory_registers_of_an_undefined_width_are_no_window() -> None:
    found = bridge(x20=("H", 0x0011), x22=("H", 0x0021), x24=("H", 0x0010), x26=("H", 0x0021))
    assert (found.memory, found.prefetchable_memory) == (None, None)


CARDBUS = """
80117604 07001002 ba000706 00a88200 000080f4 dc000002 151617b0 000000f0
00f0fff3 000000c0 00f0ffc3 00400000 fc400000 00440000 fc440000 0b018005
aa17c620 01000000"""


def test_a_cardbus_bridge() -> None:
    """The bridge of a ThinkPad, with the values that lspci shows."""
    header = decoded(bytes.fromhex(CARDBUS) + bytes(256 - 72))
    assert (header.subsystem_vendor_id, header.subsystem_device_id) == (0x17AA, 0x20C6)
    assert header.bars == (BaseAddress(0, 0xF480_0000, "memory32", prefetchable=False),)
    assert (header.bridge, header.rom_address, header.min_gnt_ns) == (None, None, None)
    assert header.devsel == "medium"
    assert header.cardbus == CardBusHeader(
        primary_bus=0x15,
        card_bus=0x16,
        subordinate_bus=0x17,
        latency_timer=176,
        memory_0=Window(0xF000_0000, 0xF3FF_FFFF, 32),
        memory_1=Window(0xC000_0000, 0xC3FF_FFFF, 32),
        io_0=Window(0x4000, 0x40FF, 16),
        io_1=Window(0x4400, 0x44FF, 16),
        control=0x0580,
        control_bits=("16bit_int", "prefetch_mem0", "post_writes"),
        secondary_status=0x0200,
        secondary_status_bits=(),
        secondary_devsel="medium",
        legacy_mode_base=1,
    )


def test_64_bytes_of_a_cardbus_bridge_lack_its_subsystem() -> None:
    header = decoded(bytes.fromhex(CARDBUS)[:64])
    assert (header.subsystem_vendor_id, header.subsystem_device_id) == (None, None)
    assert header.cardbus is not None
    assert header.cardbus.legacy_mode_base is None
    assert header.cardbus.card_bus == 0x16


def test_a_bar_that_reads_as_ones_is_none() -> None:
    assert decoded(with_bytes(config_space(), x10=("I", 0xFFFF_FFFF))).bars == ()


@pytest.mark.parametrize("header_type", [3, 0x7E])
def test_other_header_types_have_the_common_fields(header_type: int) -> None:
    config = with_bytes(config_space(header_type=header_type), x10=("I", 0xFEA0_0000), x2c=("I", 0x1234))
    header = decoded(config)
    assert (header.header_type, header.vendor_id) == (header_type, 0x1234)
    assert (header.bars, header.subsystem_vendor_id, header.rom_address) == ((), None, None)
    assert (header.bridge, header.cardbus, header.min_gnt_ns, header.max_lat_ns) == (None, None, None, None)


def test_a_vf_with_all_ones_ids_has_a_header() -> None:
    assert decoded(config_space(vendor=0xFFFF, device=0xFFFF)).vendor_id == 0xFFFF


@pytest.mark.parametrize("config", [b"", config_space()[: HEADER_SIZE - 1], b"\xff" * EXTENDED_SIZE])
def test_truncated_or_silent_space_has_no_header(config: bytes) -> None:
    assert read_header(config) is None


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE), st.integers(0, 255))
def test_random_bytes_decode_as_a_header(raw: bytes, header_type: int) -> None:
    header = read_header(raw[:0x0E] + bytes((header_type,)) + raw[0x0F:])
    if header is not None:
        assert header.vendor_id == int.from_bytes(raw[:2], "little")
        assert len(header.bars) <= 6


@examples(40)
@given(config_spaces(), st.integers(0, 0x30), st.integers(0, 0x30))
def test_all_decoded_fields_can_be_printed_and_written_as_json(
    config: bytes, standard: int, extended: int
) -> None:
    config = with_bytes(config, x40=("B", standard)) if len(config) > HEADER_SIZE else config
    config = with_bytes(config, x100=("H", extended)) if len(config) == EXTENDED_SIZE else config
    found = decode(config)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        print_config("a device", read_header(config), found, [])
    assert all(f"cap {one.offset:#05x}" in shown.getvalue() for one in found)
    assert len(json.loads(json.dumps(to_json(found)))) == len(found)


SHOWN = """\
0000:00:10.0 a [red] name?
  id           1234:11e8 rev 00, class 000000
  subsystem    0000:0000
  command      0x0000
  status       0x0010 cap_list devsel=fast
  header       type 0 (endpoint)
  timing       cache line of 0 bytes, latency timer 0
  interrupt    pin -, line 0
  cap 0x040    MSI: count 1; max count 1; address 0x0; data 0x0; no: enabled, is 64bit, maskable
  cap 0x050    PCI Express: version 2; type 0; type name endpoint; interrupt message 0; no: flit mode \
supported
               device: max payload 128; max payload supported 128; max read request 128; phantom functions \
0; l0s latency <64 ns; l1 latency <1 us; slot power limit mw 0; no: flr, extended tags, \
relaxed ordering, no snoop, transactions pending, extended tags supported, phantom functions \
enabled, role based errors, tee io, aux power enabled, aux power detected; none: errors, \
error reporting, card features
               link: speed 2.5 GT/s; width 1; max speed unknown; max width 0; port 0; read completion \
boundary 64; no: disabled, training, clock pm, clock pm enabled, surprise down, active \
reporting, bandwidth notification, aspm optionality, common clock, extended synch, \
autonomous width disabled, bandwidth interrupt enabled, autonomous bandwidth interrupt \
enabled, flit mode disabled, training error, slot clock, bandwidth management, autonomous \
bandwidth; none: aspm, aspm supported
               device2: completion timeout 50 us to 50 ms; obff enabled disabled; emergency power reduction \
not supported; tph completer not supported; no: atomics enabled, ltr, ltr enabled, ari \
forwarding, ari forwarding enabled, completion timeout disable, completion timeout disable \
enabled, no ro enabled pr pr, atomic egress blocking enabled, ido request enabled, ido \
completion enabled, ten bit tag completer, ten bit tag requester, ten bit tag requester \
enabled, extended format, end end prefixes, end end prefix blocking enabled, emergency power \
reduction init, emergency power reduction request enabled, frs; none: atomics, completion \
timeout ranges, obff
               link2: target speed 2.5 GT/s; transmit margin normal operating range; compliance preset -6 \
dB de-emphasis, 0 dB preshoot; deemphasis -6 dB; crosslink resolution not supported; no: \
crosslink, retimer, two retimers, drs, enter compliance, autonomous speed disabled, enter \
modified compliance, compliance sos, equalization complete, equalization phase1, \
equalization phase2, equalization phase3, equalization request, retimer detected, two \
retimers detected, flit mode; none: speeds
  cap 0x0e0    Capability 7f: data 7f000000{zeros}
  unavailable  some
"""


def test_the_output_of_config(capsys: pytest.CaptureFixture[str]) -> None:
    express = bytearray(struct.pack("<H", 2) + bytes(58))
    struct.pack_into("<H", express, 16, 0x11)  # a link of 2.5 GT/s, one lane
    config = config_space(
        capabilities=[(0x05, 0x40, bytes(10)), (0x10, 0x50, bytes(express)), (0x7F, 0xE0, b"")]
    )
    print_config("0000:00:10.0 a [red] name\x1b", read_header(config), decode(config), ["some"])
    lines = capsys.readouterr().out.splitlines()
    expected = SHOWN.format(zeros=" 00000000" * 7).splitlines()
    assert [line.rstrip() for line in lines] == expected
