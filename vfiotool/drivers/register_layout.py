"""Width, access rights and fields of a register, checked once, when the register is defined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from vfiotool.errors import RegisterError

Width = Literal[8, 16, 32, 64]
RegisterAccess = Literal["ro", "wo", "rw", "w1c"]

_WIDTHS = (8, 16, 32, 64)
_ACCESSES = ("ro", "wo", "rw", "w1c")


@dataclass(frozen=True, slots=True)
class Field:
    """Bits ``high`` to ``low`` of a register, both included; made by ``bit`` and ``bits``.

    ``access`` is the register's if it is ``None``.
    """

    high: int
    low: int
    access: RegisterAccess | None = None

    @property
    def largest(self) -> int:
        """The largest value that fits."""
        return (1 << self.high - self.low + 1) - 1

    @property
    def mask(self) -> int:
        """The field's bits, at their place in the register."""
        return self.largest << self.low

    def of(self, value: int) -> int:
        """Return the field's value within a register's value."""
        return value >> self.low & self.largest


def bit(number: int, access: RegisterAccess | None = None) -> Field:
    """Return a field of one bit, counted from 0."""
    return Field(number, number, access)


def bits(high: int, low: int, access: RegisterAccess | None = None) -> Field:
    """Return a field of several bits, both ends included, in a datasheet's order: ``bits(31, 16)``."""
    return Field(high, low, access)


@dataclass(frozen=True, slots=True)
class RegisterLayout:
    """A register's width in bits, its access, and its fields, each with its own access.

    ``largest`` is the largest value that fits. ``rewritable`` are the bits that may be written back as they
    were read: to write them keeps their value and has no other effect.
    """

    width: int
    access: RegisterAccess
    fields: Mapping[str, Field]
    largest: int
    rewritable: int

    @property
    def size(self) -> int:
        """The width in bytes."""
        return self.width // 8


def checked_layout(
    name: str, width: int | None, access: RegisterAccess, fields: Mapping[str, Field]
) -> RegisterLayout:
    """Return the layout of the register of this name.

    Raises:
        RegisterError: the definition contradicts itself.
    """
    if width not in _WIDTHS:
        raise contradiction(name, f"its width is {width}, not 8, 16, 32 or 64")
    if access not in _ACCESSES:
        raise contradiction(name, f"its access is '{access}', not one of {', '.join(_ACCESSES)}")
    settled = {
        field_name: _checked_field(f"{name}, field {field_name}", field, width, access)
        for field_name, field in fields.items()
    }
    for (one, a), (other, b) in combinations(settled.items(), 2):
        if a.mask & b.mask:
            raise contradiction(name, f"its fields {one} and {other} overlap")
    largest = (1 << width) - 1
    unkept = sum(field.mask for field in settled.values() if field.access in ("wo", "w1c"))
    return RegisterLayout(width, access, settled, largest, largest & ~unkept)


def contradiction(name: str, why: str) -> RegisterError:
    """Return the error for a definition that contradicts itself."""
    return RegisterError(f"{name}: {why}", hint="compare the definition with the device's datasheet")


def _checked_field(name: str, field: Field, width: int, register_access: RegisterAccess) -> Field:
    """Return the field with the register's access, unless it has its own."""
    if not 0 <= field.low <= field.high < width:
        raise contradiction(name, f"{field.high} to {field.low} are not bits of a register of {width} bits")
    access = field.access or register_access
    if access not in _ACCESSES or (register_access != "rw" and access not in ("ro", register_access)):
        raise contradiction(name, f"its access is '{access}', in a register of '{register_access}'")
    return replace(field, access=access)
