"""Registers of an open device: the attributes of a register block that was made for a register space."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Generic, NoReturn, TypeVar

from vfiotool.drivers.register_layout import Field, RegisterLayout
from vfiotool.errors import RegisterError, RegisterTimeoutError
from vfiotool.vfio.regions.register_space import RegisterSpace

E = TypeVar("E")

_NOT_FOR = {"read": ("wo", "write-only"), "written": ("ro", "read-only")}
_LONGEST_PAUSE = 1e-3


class DeviceRegister:
    """A register of a device. Threads may share it; ``update()`` is two accesses, and not atomic."""

    __slots__ = ("_at", "_largest", "_read", "_write", "layout", "name")

    def __init__(self, layout: RegisterLayout, space: RegisterSpace, at: int, name: str) -> None:
        self.layout = layout
        self.name = name
        self._at = at
        self._largest = layout.largest
        self._read: Callable[[int], int] = getattr(space, f"read{layout.width}")
        self._write: Callable[[int, int], None] = getattr(space, f"write{layout.width}")
        if layout.access == "wo":
            self._read = partial(_refuse, f"{name} is write-only, and cannot be read")
        if layout.access == "ro":
            self._write = partial(_refuse, f"{name} is read-only, and cannot be written")

    def read(self) -> int:
        """Read the register.

        Raises:
            RegisterError: the register is write-only.
        """
        return self._read(self._at)

    def read_fields(self) -> dict[str, int]:
        """Read the register once, and return all fields that can be read.

        Raises:
            RegisterError: the register is write-only.
        """
        value = self.read()
        return {name: field.of(value) for name, field in self.layout.fields.items() if field.access != "wo"}

    def read_field(self, name: str) -> int:
        """Read the register, and return one of its fields.

        Raises:
            RegisterError: there is no such field, or it is write-only.
        """
        return self._field(name, "read").of(self.read())

    def write(self, value: int | None = None, /, **fields: int) -> None:
        """Write a value, or fields with all other bits 0, or a value with some fields replaced.

        Raises:
            RegisterError: the register or a field is read-only or unknown, or a number does not fit.
        """
        if fields or value is None or not 0 <= value <= self._largest:
            value = self._composed(value, fields, "written")
        self._write(self._at, value)

    def update(self, /, **fields: int) -> None:
        """Read the register, and write it back with some fields replaced.

        Fields that are write-only, or that a 1 clears, are written as 0 unless they are named.

        Raises:
            RegisterError: the register's access is not ``rw``, or as for ``write()``.
        """
        if self.layout.access != "rw":
            raise RegisterError(
                f"{self.name} cannot be updated: its access is {self.layout.access}, not rw",
                hint="write the whole register with write()",
            )
        put = self._composed(None, fields, "written")
        kept = self.layout.rewritable & ~self._mask(fields)
        self._write(self._at, self.read() & kept | put)

    def wait_until(self, value: int | None = None, /, *, timeout: float, **fields: int) -> int:
        """Read the register until it, or its fields, have the given values; return the value that was read.

        The first read is at once. Further reads follow at growing intervals of at most 1 ms, in which other
        threads may run. The last read is after ``timeout`` seconds.

        Raises:
            RegisterError: the register or a field is write-only or unknown, or a number does not fit.
            RegisterTimeoutError: the register did not have the values in time.
        """
        wanted = self._composed(value, fields, "read")
        compared = self._mask(fields) if value is None else self._largest
        awaited = [] if value is None else [f"{value:#x}"]
        awaited += [f"{name}={number:#x}" for name, number in fields.items()]
        return self.wait_for(
            lambda read: read & compared == wanted, timeout=timeout, awaited=" ".join(awaited)
        )

    def wait_for(
        self, condition: Callable[[int], bool], /, *, timeout: float, awaited: str = "the awaited value"
    ) -> int:
        """Read, like ``wait_until()``, until a condition holds for the value; return the value.

        ``awaited`` describes the condition in the error.

        Raises:
            RegisterError: the register is write-only.
            RegisterTimeoutError: the condition did not hold in time.
        """
        if not 0 <= timeout < math.inf:
            raise RegisterError(f"{self.name} cannot be awaited for {timeout} s", hint="pass a finite time")
        end, pause = time.monotonic() + timeout, 0.0
        while True:
            is_last = time.monotonic() >= end  # before the read: a process that was stopped reads once more
            value = self.read()
            if condition(value):
                return value
            if is_last:
                raise self._timed_out(value, timeout, awaited)
            time.sleep(pause)
            pause = min(2 * pause + 1e-6, _LONGEST_PAUSE)

    def _timed_out(self, last: int, timeout: float, awaited: str) -> RegisterTimeoutError:
        gone = "all ones: the device may be gone, in reset or without power" if last == self._largest else ""
        message = f"{self.name} did not show {awaited} within {timeout:g} s: it last read {last:#x}"
        return RegisterTimeoutError(message, last=last, hint=gone)

    def _composed(self, value: int | None, fields: Mapping[str, int], use: str) -> int:
        """Return the value with the fields replaced, after all checks."""
        if value is None and not fields:
            raise RegisterError(f"{self.name} needs a value or a field", hint="pass a value or a field")
        composed = _fitting(value or 0, self._largest, self.name)
        for name, number in fields.items():
            field = self._field(name, use)
            put = _fitting(number, field.largest, f"{self.name}, field {name},")
            composed = composed & ~field.mask | put << field.low
        return composed

    def _mask(self, fields: Mapping[str, int]) -> int:
        return sum(self.layout.fields[name].mask for name in fields)

    def _field(self, name: str, use: str) -> Field:
        field = self.layout.fields.get(name)
        if field is None:
            known = ", ".join(self.layout.fields) or "none"
            raise RegisterError(f"{self.name} has no field {name}", hint=f"its fields: {known}")
        refused, why = _NOT_FOR[use]
        if field.access == refused:
            raise RegisterError(f"{self.name}, field {name}, is {why}, and cannot be {use}")
        return field

    def __repr__(self) -> str:
        return f"<{self.name} at {self._at:#x}, {self.layout.width} bits, {self.layout.access}>"


class RegisterArray(Generic[E]):
    """Registers or blocks that repeat at a fixed distance; each is made when it is first used."""

    __slots__ = ("_count", "_made", "_make", "name")

    def __init__(self, count: int, make: Callable[[int], E], name: str) -> None:
        self.name = name
        self._count = count
        self._make = make
        self._made: dict[int, E] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> E:
        """Return an element, counted from 0.

        Raises:
            RegisterError: there is no such element.
        """
        found = self._made.get(index)
        if found is None:
            if not 0 <= index < self._count:
                raise RegisterError(f"{self.name} has elements 0 to {self._count - 1}, not {index}")
            found = self._made[index] = self._make(index)
        return found

    def __iter__(self) -> Iterator[E]:
        return (self[index] for index in range(self._count))

    def __repr__(self) -> str:
        return f"<{self.name}, {self._count} elements>"


def _refuse(message: str, *_: int) -> NoReturn:
    raise RegisterError(message)


def _fitting(value: int, largest: int, name: str) -> int:
    if not 0 <= value <= largest:
        raise RegisterError(f"{name} takes 0 to {largest:#x}, not {value:#x}")
    return operator.index(value)
