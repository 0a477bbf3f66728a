from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.pci.config_space import (
    EXTENDED_SIZE,
    STANDARD_SIZE,
    Capability,
    capabilities,
    extended_capabilities,
    header_type,
)
from vfiotool.testing import config_space

POWER, MSI, EXPRESS = (0x01, 0x40, bytes(6)), (0x05, 0xFC, b""), (0x10, 0x80, bytes(58))


def found(config: bytes) -> list[tuple[bool, int, int]]:
    return [(cap.extended, cap.id, cap.offset) for cap in capabilities(config)]


def test_lists_are_followed_in_their_order() -> None:
    config = config_space(
        capabilities=[EXPRESS, POWER, MSI], extended=[(0x0D, 0x100), (0x01, 0x200), (0x10, 0xFFC)]
    )
    assert found(config) == [
        (False, 0x10, 0x80),
        (False, 0x01, 0x40),
        (False, 0x05, 0xFC),
        (True, 0x0D, 0x100),
        (True, 0x01, 0x200),
        (True, 0x10, 0xFFC),
    ]


def test_capabilities_have_names_and_unknown_ones_their_numbers() -> None:
    config = config_space(capabilities=[POWER, (0x7F, 0x60, b"")], extended=[(0x0D, 0x100), (0x7777, 0x104)])
    assert [cap.name for cap in capabilities(config)] == [
        "Power Management",
        "Capability 7f",
        "PCI Express",
        "Access Control Services",
        "Extended capability 7777",
    ]


def test_every_defined_standard_id_has_a_name() -> None:
    """The ids of include/uapi/linux/pci_regs.h, and the one of the portal bridge that follows them."""
    config = bytearray(config_space(capabilities=[(0, 0x40, b"")]))
    names = set()
    for number in range(0x16):
        config[0x40] = number
        names |= {cap.name for cap in capabilities(bytes(config))}
    assert len(names) == 0x16
    assert not any(name.startswith("Capability") for name in names)


def test_a_list_with_a_loop_ends() -> None:
    config = bytearray(config_space(capabilities=[POWER, EXPRESS]))
    config[0x81] = 0x40
    assert found(bytes(config)) == [(False, 0x01, 0x40), (False, 0x10, 0x80)]


def test_a_list_that_points_into_the_header_ends() -> None:
    config = bytearray(config_space(capabilities=[POWER]))
    config[0x41] = 0x3C
    assert found(bytes(config)) == [(False, 0x01, 0x40)]


def test_the_id_of_ones_ends_the_list() -> None:
    config = config_space(capabilities=[POWER, (0xFF, 0x50, b""), EXPRESS])
    assert found(config) == [(False, 0x01, 0x40)]


def test_an_extended_capability_has_a_version() -> None:
    config = bytearray(config_space(extended=[(0x0D, 0x100)]))
    config[0x102] = 0x02
    assert [cap.version for cap in capabilities(bytes(config))] == [None, 2]


@pytest.mark.parametrize(
    ("first", "is_walked"),
    [
        ((0x10, 0x40, b""), True),  # PCI Express
        ((0x07, 0x40, bytes.fromhex("0000 00000040")), True),  # PCI-X of 266 MHz
        ((0x07, 0x40, bytes.fromhex("0000 00000080")), True),  # PCI-X of 533 MHz
        ((0x07, 0x40, bytes.fromhex("0000 00000300")), False),  # PCI-X of mode 1, 64 bits and 133 MHz
        ((0x07, 0xFC, b""), False),  # the status is cut off
        ((0x01, 0x40, bytes(6)), False),
    ],
)
def test_extended_capabilities_need_express_or_pci_x_of_mode_2(
    first: tuple[int, int, bytes], is_walked: bool
) -> None:
    config = bytearray(config_space(capabilities=[first], extended=[(0x0D, 0x100)]))
    config[first[1] + 1] = 0  # without what the builder adds
    assert found(bytes(config))[1:] == ([(True, 0x0D, 0x100)] if is_walked else [])
    assert [cap.offset for cap in extended_capabilities(bytes(config))] == [0x100]


def test_a_host_bridge_whose_header_is_seen_again_at_0x100() -> None:
    """A real one: the bytes at 0x100 are its ids, and would be read as a capability 1002."""
    header = bytes.fromhex(
        "02101179060020220000000600200000"
        "00000000000000000000000000000000"
        "00000000000000000000000058140050"
        "00000000000000000000000000000000"
    )
    config = (header + bytes(192)) * 16
    assert capabilities(config) == ()
    assert extended_capabilities(config) != ()


def test_a_vf_with_all_ones_ids_has_capabilities() -> None:
    assert found(config_space(vendor=0xFFFF, device=0xFFFF, capabilities=[POWER])) == [(False, 0x01, 0x40)]


def test_without_the_status_bit_there_is_no_list() -> None:
    config = bytearray(config_space(capabilities=[POWER]))
    config[0x06] = 0
    assert capabilities(bytes(config)) == ()


def test_a_cardbus_bridge_has_its_pointer_at_another_offset() -> None:
    config = bytearray(config_space(header_type=2, capabilities=[POWER]))
    config[0x14], config[0x34] = config[0x34], 0
    assert found(bytes(config)) == [(False, 0x01, 0x40)]


@pytest.mark.parametrize("undefined", [3, 0x7F, 0x83])
def test_an_undefined_type_of_header_has_no_capabilities(undefined: int) -> None:
    config = bytearray(config_space(capabilities=[POWER], extended=[(0x0D, 0x100)]))
    config[0x0E] = undefined
    assert capabilities(bytes(config)) == ()


def test_the_multifunction_bit_is_not_part_of_the_header_type() -> None:
    assert header_type(config_space(header_type=0x81)) == 1
    assert header_type(b"") is None


def test_64_bytes_have_no_capabilities() -> None:
    assert capabilities(config_space(capabilities=[POWER])[:64]) == ()


def test_a_removed_device_has_no_capabilities() -> None:
    assert capabilities(b"\xff" * EXTENDED_SIZE) == ()


@given(st.binary(max_size=EXTENDED_SIZE) | st.binary(min_size=STANDARD_SIZE, max_size=STANDARD_SIZE + 64))
def test_random_bytes_give_each_capability_once_and_in_bounds(config: bytes) -> None:
    caps = capabilities(config)
    assert len({cap.offset for cap in caps}) == len(caps)
    assert all(is_inside(cap, len(config)) for cap in caps)


@given(st.data())
def test_hostile_lists_end(data: st.DataObject) -> None:
    """These bytes look like pointers more often than random bytes do."""
    pointers = st.sampled_from([0x40, 0x44, 0x80, 0xFC, 0xFE, 0x100, 0x104, 0xFFC, 0xFFF])
    config = bytearray(config_space(capabilities=[POWER], extended=[(0x0D, 0x100)]))
    for at in (0x34, 0x41, 0x45, 0x81, 0xFD):
        config[at] = data.draw(pointers) & 0xFF
    for at in (0x100, 0x104, 0xFFC):
        config[at : at + 4] = (data.draw(pointers) << 20 | 1).to_bytes(4, "little")
    caps = capabilities(bytes(config))
    assert len({cap.offset for cap in caps}) == len(caps)
    assert all(is_inside(cap, len(config)) for cap in caps)


def is_inside(cap: Capability, size: int) -> bool:
    low, high = (STANDARD_SIZE, min(size, EXTENDED_SIZE) - 4) if cap.extended else (0x40, 0xFC)
    return low <= cap.offset <= high and cap.offset % 4 == 0
