"""Vital Product Data, compared with what lspci 3.15 prints of the same bytes.

``lspci-3.15-vpd.json`` has the name of each case, the bytes, and the text of lspci.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.pci.vpd import MAX_SIZE, Vpd, VpdField, parse_vpd

RECORDED: list[list[str]] = json.loads((Path(__file__).parents[1] / "data/lspci-3.15-vpd.json").read_text())
LSPCI_NAMES = {"CC": "CCIN", "FN": "FRU", "MN": "Manufacture ID"}


def large(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + len(content).to_bytes(2, "little") + content


def as_lspci(it: Vpd) -> Iterator[str]:
    if it.product_name is not None:
        yield f"Product Name: {it.product_name}"
    yield from (line(field) for field in it.read_only)
    if it.checksum_ok is not None:
        quality = "good" if it.checksum_ok else "bad"
        yield f"[RV] Reserved: checksum {quality}, {it.reserved_bytes} byte(s) reserved"
    yield from (line(field) for field in it.read_write)
    if it.free_bytes is not None:
        yield f"[RW] Read-write area: {it.free_bytes} byte(s) free"
    if it.complete:
        yield "End"


def line(field: VpdField) -> str:
    return f"[{field.keyword}] {LSPCI_NAMES.get(field.keyword, field.name.capitalize())}: {field.value}"


def comparable(text: str) -> str:
    """Return lspci's text without its escapes, without titles and without the causes of an end."""
    text = re.sub(r"(Read-only|Read/write) fields:( |$)", "", text)
    text = re.sub(r"(No end tag found|Unknown \w+ resource type .*)$", "", text).rstrip(" ")
    text = re.sub(r"(?<!\\)\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)
    return text.replace("\\\\", "\\")


@pytest.mark.parametrize(("name", "raw", "text"), RECORDED, ids=[name for name, _, _ in RECORDED])
def test_it_reads_as_lspci_reads_it(name: str, raw: str, text: str) -> None:
    it = parse_vpd(bytes.fromhex(raw))
    expected = comparable(text)
    if name == "long field":  # lspci goes on behind it
        expected = expected.removesuffix(" End")
    shown = " ".join(as_lspci(it)).replace(r"\xe9", "é")
    assert shown == expected.replace("Ã©", "é")


def test_the_fields_of_a_board() -> None:
    it = parse_vpd(bytes.fromhex(RECORDED[0][1]))
    assert it.product_name == "Dual Port NIC"
    assert VpdField("PN", "part number", "AB-1234") in it.read_only
    assert VpdField("CP", "extended capability", "01 02 03 04") in it.read_only
    assert VpdField("Q1", "unknown", "ff 00") in it.read_only
    assert it.read_write == (
        VpdField("V1", "vendor specific", "rw"),
        VpdField("YB", "system specific", "sys\\tem"),
    )
    assert (it.checksum_ok, it.complete, it.reserved_bytes, it.free_bytes) == (True, True, 3, 20)


def test_one_changed_byte_is_a_bad_checksum() -> None:
    raw = bytearray.fromhex(RECORDED[0][1])
    raw[5] ^= 1
    assert parse_vpd(bytes(raw)).checksum_ok is False


@pytest.mark.parametrize("data", [b"", b"\x82", b"\x82\x05", b"\x82\x05\x00abc", bytes(64), b"\xff" * 64])
def test_bytes_that_are_none(data: bytes) -> None:
    assert parse_vpd(data) == Vpd(None, (), (), None, complete=False, reserved_bytes=None, free_bytes=None)


def test_a_checksum_without_a_byte_is_none() -> None:
    assert parse_vpd(large(0x90, b"RV\x00") + b"\x78").checksum_ok is None


def test_a_field_that_is_longer_than_its_resource_ends_the_data() -> None:
    it = parse_vpd(large(0x90, b"PN\x011" + b"SN\xff12") + b"\x78")
    assert (it.read_only, it.complete) == ((VpdField("PN", "part number", "1"),), False)


def test_what_the_capability_cannot_address_is_not_parsed() -> None:
    assert not parse_vpd(large(0x82, bytes(MAX_SIZE - 3)) + b"\x78").complete
    assert parse_vpd(large(0x82, bytes(MAX_SIZE - 4)) + b"\x78").complete


@given(
    st.binary(max_size=300)
    | st.lists(
        st.builds(
            large, st.sampled_from([0x82, 0x90, 0x91, 0x83]), st.binary(max_size=40) | st.just(b"PN\x02ab")
        )
    ).map(b"".join)
)
def test_any_bytes_are_parsed(data: bytes) -> None:
    it = parse_vpd(data)
    assert sum(len(one.keyword) for one in it.read_only + it.read_write) <= 4 * len(data)
    json.dumps([it.product_name, [one.value for one in it.read_only]])
