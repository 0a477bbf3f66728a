"""The bytes of one capability, never read past their end."""

from __future__ import annotations

from collections.abc import Sequence

from vfiotool.pci.config_space import EXTENDED_SIZE, STANDARD_SIZE, Capability, capabilities


class CutOffError(Exception):
    """A capability ends before what was asked of it; it never leaves this package."""


class Reader:
    """Reads a capability's fields, at offsets counted from its header, as far as its space goes."""

    def __init__(self, config: bytes, capability: Capability) -> None:
        end = EXTENDED_SIZE if capability.extended else STANDARD_SIZE
        self._bytes = config[capability.offset : end]

    def u8(self, offset: int) -> int:
        """Return a byte."""
        return self._number(offset, 1)

    def u16(self, offset: int) -> int:
        """Return two bytes as a number."""
        return self._number(offset, 2)

    def u32(self, offset: int) -> int:
        """Return four bytes as a number."""
        return self._number(offset, 4)

    def hex(self, start: int, end: int) -> str:
        """Return as many of these bytes as there are, in hexadecimal."""
        return self._bytes[start:end].hex()

    def _number(self, offset: int, size: int) -> int:
        if offset + size > len(self._bytes):
            raise CutOffError
        return int.from_bytes(self._bytes[offset : offset + size], "little")


def find_reader(config: bytes, number: int, *, extended: bool) -> Reader | None:
    """Return a reader of the first capability of this id, or ``None``."""
    for one in capabilities(config):
        if (one.id, one.extended) == (number, extended):
            return Reader(config, one)
    return None


def names_of(value: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the bits that are set, from a name for each bit; the others have none."""
    return tuple(name for number, name in enumerate(names) if name and value >> number & 1)
