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
from vfiotool.pci.capabilities.decoding import decode
from vfiotool.pci.config_space import EXTENDED_SIZE, HEADER_SIZE
from vfiotool.pci.header import BaseAddress, BridgeHeader, Header, Window, read_header
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
            x2c=("H", 0x1AF4),
            x2e=("H", 0x1100),
            x30=("I", 0xFEB0_0001),
            x3c=("B", 11),
            x3d=("B", 2),
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
        x1c=("B", 0x10),
        x1d=("B", 0x20),
        x20=("H", 0xFDC0),
        x22=("H", 0xFDD0),
        x24=("H", 0xFE80),
        x26=("H", 0xFE90),
        x3e=("H", 0x000A),
    ) == BridgeHeader(
        primary_bus=1,
        secondary_bus=2,
        subordinate_bus=7,
        io=Window(0x1000, 0x2FFF),
        memory=Window(0xFDC0_0000, 0xFDDF_FFFF),
        prefetchable_memory=Window(0xFE80_0000, 0xFE9F_FFFF),
        control=0x000A,
        control_bits=("serr", "vga"),
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
    assert found.io == Window(0x1_1000, 0x2_2FFF)
    assert found.prefetchable_memory == Window(0x38_0000_0000, 0x39_FFFF_FFFF)


def test_closed_windows_are_none() -> None:
    found = bridge(
        x1c=("B", 0xF0), x20=("H", 0xFFF0), x24=("H", 0xFFF1), x26=("H", 0x0001), x28=("I", 0xFFFF_FFFF)
    )
    assert (found.io, found.memory, found.prefetchable_memory) == (None, None, None)


@pytest.mark.parametrize("header_type", [2, 3, 0x7E])
def test_other_header_types_have_the_common_fields(header_type: int) -> None:
    config = with_bytes(config_space(header_type=header_type), x10=("I", 0xFEA0_0000), x2c=("I", 0x1234))
    header = decoded(config)
    assert (header.header_type, header.vendor_id) == (header_type, 0x1234)
    assert (header.bars, header.subsystem_vendor_id, header.rom_address) == ((), None, None)


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
  status       0x0010 cap_list
  header       type 0 (endpoint)
  timing       cache line of 0 bytes, latency timer 0
  interrupt    pin -, line 0
  cap 0x040    MSI: enabled no; count 1; max count 1; is 64bit no; maskable no; address 0x0; data 0x0
  cap 0x050    PCI Express: version 2; type 0; type name endpoint
               device: max payload 128; max payload supported 128; max read request 128; flr no; extended \
tags no; relaxed ordering no; no snoop no; errors -; transactions pending no
               link: speed 2.5 GT/s; width 1; max speed unknown; max width 0; port 0; aspm -; \
aspm supported -; disabled no; training no
               device2: atomics -; atomics enabled no; ltr no; ltr enabled no; ari forwarding no; ari \
forwarding enabled no
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
