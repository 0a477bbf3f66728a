from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.errors import SelectorError
from vfiotool.pci.address import is_address, parse_address, sort_key

DOMAINS = st.integers(0, 2**32 - 1)
FUNCTIONS = st.tuples(st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:03:00.0", "0000:03:00.0"),
        ("03:00.0", "0000:03:00.0"),
        ("3:0.7", "0000:03:00.7"),
        ("10000:e1:1F.7", "10000:e1:1f.7"),
        (" 0000:03:00.0\n", "0000:03:00.0"),
    ],
)
def test_forms_of_an_address(text: str, address: str) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", ":", "03", "03:00", "03:00.", "03:00.8", "03:20.0", "100:00.0", "0x3:00.0"),
        *("+3:00.0", "0_0:00.0", "100000000:00:00.0", "0000:03:00.0.0", "a:b:c:d.0", "٣:00.0", "-1:00.0"),
    ],
)
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(SelectorError) as error:
        parse_address(text)
    assert error.value.hint
    assert not is_address(text)


def test_the_error_names_a_number_out_of_range() -> None:
    with pytest.raises(SelectorError, match=r"3f is too large \(at most 1f\)"):
        parse_address("00:3f.0")


@given(st.text() | st.text("0123456789abcdef:."))
def test_any_text_is_an_address_or_a_selector_error(text: str) -> None:
    try:
        address = parse_address(text)
    except SelectorError:
        return
    assert parse_address(address) == address


@given(DOMAINS, FUNCTIONS)
def test_the_form_of_the_kernel_is_unchanged(domain: int, function: tuple[int, int, int]) -> None:
    address = "{:04x}:{:02x}:{:02x}.{:x}".format(domain, *function)
    assert parse_address(address) == address


@given(st.lists(st.tuples(DOMAINS, FUNCTIONS)))
def test_addresses_are_ordered_as_numbers(numbers: list[tuple[int, tuple[int, int, int]]]) -> None:
    texts = ["{:04x}:{:02x}:{:02x}.{:x}".format(domain, *function) for domain, function in numbers]
    assert sorted(texts, key=sort_key) == [
        "{:04x}:{:02x}:{:02x}.{:x}".format(domain, *function) for domain, function in sorted(numbers)
    ]
