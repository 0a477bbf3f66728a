"""Compares configuration spaces, as vfiotool decodes them, with what lspci prints of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.support.lspci_comparison import Comparison, Table
from tests.support.lspci_extended import EXTENDED
from tests.support.lspci_headers import HEADERS
from tests.support.lspci_standard import STANDARD
from tests.support.lspci_text import Device, Section

# Some capabilities have two forms with the same labels: the second's get a name of their own.
_SECOND_FORMS = {
    "HyperTransport: Host or Secondary Interface": (
        r"(?=\b(?:Command|Feature Capability|Error Handling|Prefetchable memory behind bridge Upper):)",
        "Host ",
    ),
    "PCI-X bridge device": (r"(?<!Secondary )(?=\bStatus:)", "Bridge "),
}
Fields = Mapping[str, Any]


def tables() -> list[Table]:
    """Return all tables."""
    return [*HEADERS.values(), *STANDARD.values(), *EXTENDED.values()]


def compare_device(
    comparison: Comparison, device: Device, value: Fields | None, *, is_live: bool = False
) -> None:
    """Compare what lspci prints of a device with the value of ``vfiotool config --json``.

    Of a live device lspci shows the kernel's interrupts and kinds of windows, and of a VF its ids: the
    registers have others.
    """
    if value is None:
        comparison.compare(device.address, HEADERS[None], device.header, {})
        return
    header = HEADERS.get(value["header_type"], HEADERS[-1])
    text = _without_upper_halves(device.header, value)
    if is_live:
        text = re.sub(r" routed to IRQ [0-9]+(?:[-, ]+[0-9]+)*", "", text)
        text = re.sub(r" \[(?:32|64)-bit\]", "", text)
        if (value["vendor_id"], value["device_id"]) == (0xFFFF, 0xFFFF):
            text = re.sub(r"^(Device: \w+:) \w+:\w+", r"\1 ffff:ffff", text)
    comparison.compare(device.address, header, text, value)
    found = {(one["extended"], one["offset"]): one for one in value["capabilities"] or ()}
    offsets = [(one.is_extended, one.offset) for one in device.sections if not one.is_chain_error]
    if offsets != list(found):
        comparison.problems.append(
            f"{device.address}: lspci has capabilities at {_hex(offsets)}, vfiotool at {_hex(found)}"
        )
    for section in device.sections:
        one = found.get((section.is_extended, section.offset))
        if one is not None and not section.is_chain_error:
            _compare_section(comparison, device.address, section, one)


def _compare_section(comparison: Comparison, address: str, section: Section, found: Fields) -> None:
    where = f"{address} [{section.offset:x}]"
    table = (EXTENDED if found["extended"] else STANDARD).get(found["id"])
    if table is None:
        if not section.is_unknown:
            comparison.problems.append(f"{where}: no table for '{section.text}'")
        return
    if section.version is not None and found.get("version") != section.version:
        comparison.problems.append(
            f"{where}: lspci prints version {section.version}, vfiotool has {found.get('version')}"
        )
    text = section.text
    for title, (place, name) in _SECOND_FORMS.items():
        if text.startswith(title):
            text = re.sub(place, name, text)
    comparison.compare(where, table, text, found["content"])


def _without_upper_halves(text: str, value: Fields) -> str:
    """Return the text of a header without the upper halves of 64-bit BARs: of a dump lspci shows them."""
    for bar in value["bars"]:
        if bar["type"] == "memory64":
            upper = rf" Region {bar['index'] + 1}: (Memory|I/O ports) at (<unassigned>|0000)"
            text = re.sub(upper + r"( \([^)]*\))?( \[disabled\])?(?= |$)", "", text)
    return text


def _hex(places: Any) -> str:
    return " ".join(f"{offset:x}" for _extended, offset in places)
