"""A device's registers, declared as in its datasheet, and used by name.

    class Uart(RegisterBlock, width=32):
        data = Register(0x00)
        status = Register(0x04, access="ro", fields={"ready": bit(0), "level": bits(7, 4)})
        threshold = Register(0x10, count=4)

    uart = Uart(bar0)
    uart.status.wait_until(ready=1, timeout=1.0)
    uart.data.write(uart.threshold[2].read())

Each ``read()`` and each ``write()`` is one access of the register's exact width. A definition that
contradicts itself is an error when its class is made. A use that contradicts the definition is an error
before anything reaches the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, overload

from vfiotool.drivers.device_register import DeviceRegister, RegisterArray
from vfiotool.drivers.register_layout import (
    Field,
    RegisterAccess,
    RegisterLayout,
    Width,
    checked_layout,
    contradiction,
)
from vfiotool.errors import RegisterError
from vfiotool.vfio.regions.register_space import RegisterSpace

M = TypeVar("M", bound="_Member[Any]")
P = TypeVar("P")
B = TypeVar("B", bound="RegisterBlock")


class _Member(Generic[P]):
    """A part of a block, single or repeated; ``P`` is the type of the attribute of a block's instance."""

    name = ""
    size = 0
    alignment = 1

    def __init__(self, offset: int, count: int | None, stride: int | None, overlaps: bool) -> None:
        self.offset = offset
        self.count = count
        self.stride = stride
        self.overlaps = overlaps

    @overload
    def __get__(self: M, block: None, owner: type[RegisterBlock]) -> M: ...
    @overload
    def __get__(self, block: RegisterBlock, owner: type[RegisterBlock]) -> P: ...
    def __get__(self: M, block: RegisterBlock | None, owner: type[RegisterBlock]) -> M | P:
        if block is None:
            return self
        made = self._placed(block._space, block._offset + self.offset, f"{block._name}.{self.name}")
        vars(block)[self.name] = made  # later lookups find it in the instance
        return cast("P", made)

    def _placed(self, space: RegisterSpace, at: int, path: str) -> object:
        if self.count is None:
            return self._one(space, at, path)
        return RegisterArray(self.count, partial(self._element, space, at, path), path)

    def _element(self, space: RegisterSpace, at: int, path: str, index: int) -> object:
        return self._one(space, at + index * self.distance, f"{path}[{index}]")

    def _one(self, space: RegisterSpace, at: int, path: str) -> object:
        raise NotImplementedError

    @property
    def distance(self) -> int:
        """The number of bytes between the starts of two elements."""
        return self.size if self.stride is None else self.stride

    @property
    def end(self) -> int:
        """The first byte behind the last element."""
        return self.offset + ((self.count or 1) - 1) * self.distance + self.size

    def settle(self, block: str, name: str, width: Width | None) -> None:
        """Take name and width from the block that defines the member.

        Raises:
            RegisterError: the definition contradicts itself.
        """
        path = f"{block}.{name}"
        if self.name:
            raise contradiction(path, f"it is {self.name} already: each name needs a separate definition")
        self.name = name
        if self.count is None and self.stride is not None:
            raise contradiction(path, "it has a stride, but no count")
        if self.count is not None and self.count < 1:
            raise contradiction(path, f"its count is {self.count}")
        if self.offset < 0 or self.offset % self.alignment:
            raise contradiction(path, f"offset {self.offset:#x} is no multiple of {self.alignment} bytes")
        if self.distance < self.size or self.distance % self.alignment:
            why = f"stride {self.distance:#x} is too small, or no multiple of {self.alignment} bytes"
            raise contradiction(path, why)

    def spans(self, at: int, prefix: str) -> Iterator[tuple[int, int, str]]:
        """Yield (start, end, name) for each register that must not share its bytes."""
        if self.overlaps:
            return
        for index in range(self.count or 1):
            name = f"{prefix}{self.name}" if self.count is None else f"{prefix}{self.name}[{index}]"
            yield from self._spans_of_one(at + self.offset + index * self.distance, name)

    def _spans_of_one(self, at: int, name: str) -> Iterator[tuple[int, int, str]]:
        yield at, at + self.size, name


class Register(_Member[P]):
    """The definition of a register, ``offset`` bytes from its block's start.

    ``access`` is ``ro``, ``wo``, ``rw``, or ``w1c`` (readable, and writing 1 to a bit clears it). ``fields``
    are made by ``bit`` and ``bits``. With ``count`` the register repeats, ``stride`` bytes from start to
    start, or without a gap: ``block.name[3].read()``. ``side_effects`` means that a read changes the device:
    ``dump()`` leaves the register out. ``overlaps`` means that other registers may share its bytes.
    """

    layout: RegisterLayout

    @overload
    def __init__(
        self: Register[DeviceRegister],
        offset: int,
        *,
        width: Width | None = None,
        access: RegisterAccess = "rw",
        fields: Mapping[str, Field] | None = None,
        side_effects: bool = False,
        overlaps: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self: Register[RegisterArray[DeviceRegister]],
        offset: int,
        *,
        count: int,
        stride: int | None = None,
        width: Width | None = None,
        access: RegisterAccess = "rw",
        fields: Mapping[str, Field] | None = None,
        side_effects: bool = False,
        overlaps: bool = False,
    ) -> None: ...
    def __init__(
        self,
        offset: int,
        *,
        count: int | None = None,
        stride: int | None = None,
        width: Width | None = None,
        access: RegisterAccess = "rw",
        fields: Mapping[str, Field] | None = None,
        side_effects: bool = False,
        overlaps: bool = False,
    ) -> None:
        super().__init__(offset, count, stride, overlaps)
        self.side_effects = side_effects
        self._given = width, access, fields or {}

    def settle(self, block: str, name: str, width: Width | None) -> None:
        own_width, access, fields = self._given
        self.layout = checked_layout(f"{block}.{name}", own_width or width, access, fields)
        self.size = self.alignment = self.layout.size
        super().settle(block, name, width)

    def _one(self, space: RegisterSpace, at: int, path: str) -> DeviceRegister:
        return DeviceRegister(self.layout, space, at, path)

    def __repr__(self) -> str:
        return f"<Register {self.name} at {self.offset:#x}, {self.layout.width} bits, {self.layout.access}>"


class Nested(_Member[P]):
    """The definition of a block within a block, ``offset`` bytes from its start.

    With ``count`` the block repeats, ``stride`` bytes from start to start: ``block.name[3].head.read()``.
    ``overlaps`` means that other registers may share its bytes.
    """

    @overload
    def __init__(self: Nested[B], block: type[B], offset: int, *, overlaps: bool = False) -> None: ...
    @overload
    def __init__(
        self: Nested[RegisterArray[B]],
        block: type[B],
        offset: int,
        *,
        count: int,
        stride: int,
        overlaps: bool = False,
    ) -> None: ...
    def __init__(
        self,
        block: type[RegisterBlock],
        offset: int,
        *,
        count: int | None = None,
        stride: int | None = None,
        overlaps: bool = False,
    ) -> None:
        super().__init__(offset, count, stride, overlaps)
        self.block = block
        self.size = block._size
        self.alignment = block._alignment

    def _one(self, space: RegisterSpace, at: int, path: str) -> RegisterBlock:
        return self.block(space, at, name=path)

    def _spans_of_one(self, at: int, name: str) -> Iterator[tuple[int, int, str]]:
        for member in self.block._members.values():
            yield from member.spans(at, f"{name}.")

    def __repr__(self) -> str:
        return f"<Nested {self.name} at {self.offset:#x}, {self.block.__name__}>"


class _Body(dict[str, object]):
    """A block's body while Python runs it: refuses a name that a register has already."""

    def __init__(self, block: str) -> None:
        super().__init__()
        self._block = block

    def __setitem__(self, name: str, value: object) -> None:
        if isinstance(self.get(name), _Member):
            raise contradiction(f"{self._block}.{name}", "the name is used twice")
        super().__setitem__(name, value)


class _BlockType(type):
    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> _Body:
        return _Body(name)


class RegisterBlock(metaclass=_BlockType):
    """Registers that lie together in a register space, ``offset`` bytes from its start.

    A subclass names the registers; its ``width`` is that of all registers without their own. ``name`` is the
    block's name in errors, by default the name of its class.

    Raises:
        RegisterError: the block does not fit in the space, or is not aligned there.
    """

    _members: ClassVar[Mapping[str, _Member[Any]]] = {}
    _width: ClassVar[Width | None] = None
    _size: ClassVar[int] = 0
    _alignment: ClassVar[int] = 1

    def __init_subclass__(cls, *, width: Width | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._width = width or cls._width
        for name, member in vars(cls).items():
            if isinstance(member, _Member):
                if name.startswith("_") or hasattr(RegisterBlock, name):
                    raise contradiction(f"{cls.__name__}.{name}", "every block uses this name itself")
                member.settle(cls.__name__, name, cls._width)
        lineage = [vars(base).items() for base in reversed(cls.__mro__)]
        cls._members = {n: member for items in lineage for n, member in items if isinstance(member, _Member)}
        cls._size = max((member.end for member in cls._members.values()), default=0)
        cls._alignment = max((member.alignment for member in cls._members.values()), default=1)
        _refuse_overlaps(cls.__name__, cls._members.values())

    def __init__(self, space: RegisterSpace, offset: int = 0, *, name: str = "") -> None:
        self._space = space
        self._offset = offset
        self._name = name or type(self).__name__
        if offset < 0 or offset + self._size > space.size:
            raise RegisterError(
                f"{self._name} does not fit: {self._size:#x} bytes at {offset:#x} of {space.size:#x}",
                hint="check that it is the right BAR of the right device, and mapped completely",
            )
        if offset % self._alignment:
            raise RegisterError(
                f"{self._name} at {offset:#x} is not aligned: it has registers of {self._alignment} bytes"
            )

    def dump(self) -> dict[str, int]:
        """Read all registers that can be read without side effects, and return their values.

        They are in the order of definition, named ``status``, ``threshold[2]``, ``queue[1].head``.
        """
        skipped = len(self._name) + 1
        return {register.name[skipped:]: register.read() for register in self._harmless()}

    def _harmless(self) -> Iterator[DeviceRegister]:
        """Yield each register that can be read without side effects."""
        for name, member in self._members.items():
            if isinstance(member, Register) and (member.side_effects or member.layout.access == "wo"):
                continue
            found = getattr(self, name)
            for one in found if isinstance(found, RegisterArray) else (found,):
                yield from one._harmless() if isinstance(one, RegisterBlock) else (one,)

    if not TYPE_CHECKING:  # type checkers would allow any attribute to be set

        def __setattr__(self, name: str, value: object) -> None:
            if name in self._members:
                raise RegisterError(
                    f"{self._name}.{name} is a register, and cannot be replaced by a value",
                    hint=f"write the value with {name}.write()",
                )
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<{self._name}, {self._size:#x} bytes at {self._offset:#x} of {self._space!r}>"


def _refuse_overlaps(block: str, members: Iterable[_Member[Any]]) -> None:
    spans = sorted(span for member in members for span in member.spans(0, ""))
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            raise contradiction(block, f"{one} and {other} overlap, and neither has overlaps=True")
