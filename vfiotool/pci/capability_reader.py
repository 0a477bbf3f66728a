"""A reader of the bytes of a capability that never reads past their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vfiotool.pci.config_space import EXTENDED_SIZE, STANDARD_SIZE, Capability, capabilities

T = TypeVar("T")


class CutOffError(Exception):
    """A capability ends before the field that was read. Never raised out of ``vfiotool.pci``."""


class Reader:
    """Reads the fields of a capability, at offsets from its header, up to the end of its space.

    ``config`` is the whole configuration space: the meaning of some fields depends on other capabilities.
    """

    def __init__(self, config: bytes, capability: Capability, start: int = 0) -> None:
        end = EXTENDED_SIZE if capability.extended else STANDARD_SIZE
        self.config = config
        self._capability = capability
        self._start = capability.offset + start
        self._end = min(end, len(config))

    def block(self, offset: int) -> Reader:
        """Return a reader of a part of the capability, at offsets from the start of the part."""
        return Reader(self.config, self._capability, self._start - self._capability.offset + offset)

    def u8(self, offset: int) -> int:
        """Return a byte."""
        return self._number(offset, 1)

    def u16(self, offset: int) -> int:
        """Return two bytes as a number."""
        return self._number(offset, 2)

    def u32(self, offset: int) -> int:
        """Return four bytes as a number."""
        return self._number(offset, 4)

    def u64(self, offset: int) -> int:
        """Return eight bytes as a number."""
        return self._number(offset, 8)

    def hex(self, start: int, end: int) -> str:
        """Return the bytes from ``start`` to ``end``, or fewer at the end of the space, in hexadecimal."""
        return self.config[self._start + start : min(self._start + end, self._end)].hex()

    def _number(self, offset: int, size: int) -> int:
        start = self._start + offset
        if start + size > self._end:
            raise CutOffError
        return int.from_bytes(self.config[start : start + size], "little")


def find_reader(config: bytes, number: int, *, extended: bool) -> Reader | None:
    """Return a reader of the first capability with this id, or ``None``."""
    for one in capabilities(config):
        if (one.id, one.extended) == (number, extended):
            return Reader(config, one)
    return None


def names_of(value: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the bits that are set, given a name for each bit; an unnamed bit is left out."""
    return tuple(name for number, name in enumerate(names) if name and value >> number & 1)


def name_of(value: int, names: Sequence[str]) -> str:
    """Return the name of a value, given the names of the values from 0; ``reserved N`` without a name."""
    return names[value] if value < len(names) and names[value] else f"reserved {value}"


def flag(value: int, number: int) -> bool:
    """Return True if a bit is set."""
    return bool(value >> number & 1)


def bits(value: int, first: int, count: int) -> int:
    """Return the number in ``count`` bits, of which ``first`` is the lowest."""
    return value >> first & (1 << count) - 1


def if_complete(read: Callable[[Reader], T], at: Reader) -> T | None:
    """Return a part of a capability, or ``None`` if it is cut off."""
    try:
        return read(at)
    except CutOffError:
        return None


def read_blocks(
    read: Callable[[Reader], T], at: Reader, *, first: int, size: int, count: int
) -> tuple[T, ...]:
    """Return the equal parts of a capability: ``count``, or fewer if the others are cut off.

    ``first`` is the offset of the first part, and ``size`` the distance of the parts, in bytes.
    """
    blocks: list[T] = []
    for number in range(count):
        block = if_complete(read, at.block(first + number * size))
        if block is None:
            break
        blocks.append(block)
    return tuple(blocks)
