"""Functions with plausible chains of capabilities whose registers have random bits."""

from __future__ import annotations

import random
from collections.abc import Iterable

from vfiotool.pci.acs import PortType

STANDARD = {
    0x01: 8, 0x02: 12, 0x03: 8, 0x04: 4, 0x05: 24, 0x06: 4, 0x07: 16, 0x08: 28, 0x09: 24, 0x0A: 4, 0x0B: 4,
    0x0C: 8, 0x0D: 8, 0x0E: 12, 0x0F: 8, 0x10: 60, 0x11: 12, 0x12: 8, 0x13: 8, 0x14: 56, 0x15: 36, 0x16: 4,
}  # fmt: skip
"""The size of each standard capability in bytes, with its header."""
EXTENDED = {
    0x00: 4, 0x01: 0x48, 0x02: 0x80, 0x03: 12, 0x04: 16, 0x05: 0x90, 0x06: 12, 0x07: 12, 0x08: 0x80,
    0x09: 0x80, 0x0A: 8, 0x0B: 24, 0x0C: 8, 0x0D: 8, 0x0E: 8, 0x0F: 8, 0x10: 0x40, 0x11: 8, 0x12: 0x30,
    0x13: 16, 0x15: 0x34, 0x16: 0x30, 0x17: 12, 0x18: 8, 0x19: 0x4C, 0x1A: 8, 0x1B: 8, 0x1C: 8, 0x1D: 0x30,
    0x1E: 20, 0x1F: 12, 0x20: 8, 0x21: 8, 0x22: 8, 0x23: 0x40, 0x24: 0x34, 0x25: 12, 0x26: 0x40, 0x27: 0x48,
    0x28: 8, 0x29: 16, 0x2A: 0x40, 0x2B: 8, 0x2C: 8, 0x2D: 8, 0x2E: 20, 0x2F: 16, 0x30: 0x120, 0x31: 0x30,
    0x32: 0x3C, 0x33: 8, 0x34: 40, 0x35: 8, 0x36: 0x40, 0x37: 8,
}  # fmt: skip
"""The size of each extended capability in bytes, with its header."""
EXPRESS = 0x10
_PCI_X = 0x07
_HYPERTRANSPORT = 0x08
_VENDOR_SPECIFIC = 0x09
_ENHANCED_ALLOCATION = 0x14
_RESIZABLE = (0x15, 0x24)
_SRIOV = 0x10
_DESIGNATED = 0x23
_LINK_DECLARATION = 0x05
_ENCRYPTION = 0x30
_LOCATORS = 0x36
_CXL = 0x1E98
_MULTI_LOGICAL_DEVICE = 9
_CXL_IDS = (*range(11), 0xFFFF)
_HT_KINDS = (
    *[0x00] * 8,
    *[0x20] * 8,
    0x40,
    0x80,
    0x88,
    0x90,
    0x98,
    0xA0,
    *[0xA8] * 4,
    0xB0,
    0xB8,
    0xC0,
    0xC8,
    0xD0,
)
_HT_REVISIONS = (0x11, 0x22, 0x25, 0x60)
_INTEL_TYPES = (0x01, 0x01, 0x02, 0x11, 0x21)
_SHARED_MEMORY = 8
_INTEL, _VIRTIO = (0x86, 0x80), (0xF4, 0x1A)
_BRIDGE_CLASS = (0x04, 0x06)


def bits(contents: random.Random, count: int) -> bytes:
    """Return random bytes in words that have none of their bits set, few, many, or half."""
    words = bytearray()
    while len(words) < count:
        one, other = contents.getrandbits(32), contents.getrandbits(32)
        words += contents.choice((0, one, one, one & other, one | other)).to_bytes(4, "little")
    return bytes(words[:count])


def function(
    contents: random.Random,
    *,
    standard: Iterable[int] | None = None,
    extended: Iterable[int] | None = None,
    header_type: int | None = None,
) -> bytes:
    """Return the configuration space of a random function, with these capabilities or some of all."""
    kind = contents.choice((0, 0, 0, 1, 1, 2)) if header_type is None else header_type
    config = bytearray(4096)
    config[:64] = _header(contents, kind)
    first = [EXPRESS, *STANDARD] if contents.random() < 0.8 else [_PCI_X, *STANDARD]
    some = [first[0], *contents.sample(first[1:], len(first) - 1)] if standard is None else list(standard)
    _chain_standard(contents, config, dict.fromkeys(some), 0x14 if kind == 2 else 0x34)
    every = contents.sample(sorted(EXTENDED), len(EXTENDED)) if extended is None else list(extended)
    _chain_extended(contents, config, every)
    return bytes(config)


def _header(contents: random.Random, kind: int) -> bytes:
    header = bytearray(bits(contents, 64))
    header[0:4] = contents.randbytes(4)
    header[6] |= 0x10
    header[0x0E] = header[0x0E] & 0x80 | kind
    if kind == 1:
        header[0x0A:0x0C] = _BRIDGE_CLASS
        for at, mask in ((0x1C, 1), (0x20, 0), (0x24, 1)):
            # A bridge has the same type in both ends of a window.
            step = 1 if at == 0x1C else 2
            low = contents.getrandbits(1) & mask
            for end in (at, at + step):
                header[end] = header[end] & 0xF0 | low
    elif kind == 2:
        header[0x0A:0x0C] = (0x07, 0x06)
        for at in (0x1C, 0x20, 0x24, 0x28):  # windows of whole pages
            header[at], header[at + 1] = 0, header[at + 1] & 0xF0
    else:
        header[0x0B] = contents.choice((0x01, 0x02, 0x03, 0x0C, 0x12))
    _make_bars_plausible(header, kind)
    return bytes(header)


def _make_bars_plausible(header: bytearray, kind: int) -> None:
    """Have no 64-bit BAR where there is no register for its upper half."""
    last = {0: 0x24, 1: 0x14, 2: 0x10}[kind]
    if header[last] & 7 == 4:
        header[last] &= 0xFB


def _chain_standard(contents: random.Random, config: bytearray, numbers: Iterable[int], pointer: int) -> None:
    at = 0x48 if pointer == 0x14 else 0x40
    if pointer == 0x14:
        config[0x40:0x48] = contents.randbytes(8)
    for number in numbers:
        size = STANDARD[number]
        if at + size > 0x100:
            continue
        config[at : at + size] = bits(contents, size)
        config[pointer], config[at], config[at + 1] = at, number, 0
        _make_plausible(contents, config, number, at, size)
        pointer, at = at + 1, at + (size + 3) // 4 * 4


def _make_plausible(contents: random.Random, config: bytearray, number: int, at: int, size: int) -> None:
    if number == EXPRESS:
        config[at + 2] = contents.choice(list(PortType)) << 4 | contents.choice((1, 2, 2, 2))
    elif number == _PCI_X:
        config[at + 7] |= 0x40  # mode 2, without which there is no extended space
    elif number == _HYPERTRANSPORT:
        config[at + 3] = contents.choice(_HT_KINDS) | contents.getrandbits(3)
        config[at + (8 if config[at + 3] & 0x20 else 12)] = contents.choice(_HT_REVISIONS)
    elif number == _VENDOR_SPECIFIC:
        config[at + 2] = contents.choice((8, 12, 16, 20, 24))
        ids = contents.choice((None, None, _INTEL, (*_VIRTIO, contents.getrandbits(7), 0x10)))
        if ids is not None:
            config[0 : len(ids)] = ids
            config[at + 3] = contents.choice(_INTEL_TYPES) if ids == _INTEL else contents.randint(0, 9)
        if config[at + 3] == _SHARED_MEMORY:  # lspci dies if it is shorter
            config[at + 2] = 24
    elif number == _ENHANCED_ALLOCATION:
        # lspci ends if an entry has fewer words than its own bits tell.
        config[at + 2] = contents.randint(0, 2)
        first = 8 if config[0x0E] & 0x7F == 1 else 4
        for entry in (at + first, at + first + 20):
            config[entry] = config[entry] & 0xF8 | 4


def _chain_extended(contents: random.Random, config: bytearray, numbers: Iterable[int]) -> None:
    at, previous = 0x100, None
    for number in numbers:
        size = EXTENDED[number]
        if at + size > len(config):
            continue
        config[at : at + size] = bits(contents, size)
        config[at : at + 4] = (contents.choice((1, 1, 2, 3)) << 16 | number).to_bytes(4, "little")
        _make_extended_plausible(contents, config, number, at)
        if previous is not None:
            word = int.from_bytes(config[previous : previous + 4], "little") | at << 20
            config[previous : previous + 4] = word.to_bytes(4, "little")
        previous, at = at, at + (size + 3) // 4 * 4


def _make_extended_plausible(contents: random.Random, config: bytearray, number: int, at: int) -> None:
    """Set counts and lengths to what the capability has room for: lspci fails where its space ends."""
    if number in _RESIZABLE:
        config[at + 8] = config[at + 8] & 0x1F | contents.randint(1, 6) << 5
    elif number == _SRIOV:
        for bar in range(
            at + 0x24, at + 0x3C, 4
        ):  # a 32-bit or 64-bit BAR; the last cannot have an upper half
            config[bar] &= 0xFD if bar < at + 0x38 else 0xF9
    elif number == _LINK_DECLARATION:
        config[at + 5] = contents.randint(0, 8)
    elif number == _LOCATORS:
        config[at + 4 : at + 6] = (8 * contents.randint(1, 7)).to_bytes(2, "little")
    elif number == _DESIGNATED and contents.random() < 0.7:
        config[at + 4 : at + 6] = _CXL.to_bytes(2, "little")
        config[at + 6 : at + 8] = (EXTENDED[number] << 4 | contents.randint(0, 3)).to_bytes(2, "little")
        config[at + 8 : at + 10] = contents.choice(_CXL_IDS).to_bytes(2, "little")
        if config[at + 8] == _MULTI_LOGICAL_DEVICE:
            config[at + 10 : at + 12] = contents.randint(0, 20).to_bytes(2, "little")
        for info in (at + 28, at + 44):
            # The kinds and the interleave of memory: at a reserved number lspci dies.
            config[info] = config[info] & 3 | contents.randint(0, 2) << 2 | contents.randint(0, 2) << 5
            config[info + 1] &= 0xE7
    elif number == _ENCRYPTION:
        config[at + 6] = contents.randint(0, 1)
        links = (config[at + 5] >> 5) + 1 if config[at + 4] & 1 else 0
        stream = at + 12 + 8 * links
        for _ in range(config[at + 6] + 1):
            config[stream] = config[stream] & 0xF0 | contents.randint(0, 3)
            stream += 20 + 12 * (config[stream] & 0xF)
