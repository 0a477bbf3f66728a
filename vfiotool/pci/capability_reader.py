"""A reader of the bytes of a capability that never reads past their end."""

from __future__ import annotations

from collections.abc import Sequence

from vfiotool.pci.config_space import EXTENDED_SIZE, STANDARD_SIZE, Capability, capabilities


class CutOffError(Exception):
    """A capability ends before the field that was read. Never raised out of ``vfiotool.pci``."""


class Reader:
    """Reads the fields of a capability, at offsets from its header, up to the end of its space."""

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
        """Return the bytes from ``start`` to ``end``, or fewer at the end of the space, in hexadecimal."""
        return self._bytes[start:end].hex()

    def _number(self, offset: int, size: int) -> int:
        if offset + size > len(self._bytes):
            raise CutOffError
        return int.from_bytes(self._bytes[offset : offset + size], "little")


def find_reader(config: bytes, number: int, *, extended: bool) -> Reader | None:
    """Return a reader of the first capability with this id, or ``None``."""
    for one in capabilities(config):
        if (one.id, one.extended) == (number, extended):
            return Reader(config, one)
    return None


def names_of(value: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the bits that are set, given a name for each bit; an unnamed bit is left out."""
    return tuple(name for number, name in enumerate(names) if name and value >> number & 1)
