from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.drivers import DeviceRegister, Field, Nested, Register, RegisterArray, RegisterBlock, bit, bits
from vfiotool.drivers.register_layout import Width
from vfiotool.errors import RegisterError, RegisterTimeoutError, VfioToolError
from vfiotool.vfio.regions.register_space import RegisterSpace


class Space:
    """Memory that records accesses: ``("read32", 4)``, ``("write8", 0, 255)``."""

    def __init__(self, size: int = 0x1000) -> None:
        self.memory = bytearray(size)
        self.seen: list[tuple[Any, ...]] = []

    @property
    def size(self) -> int:
        return len(self.memory)

    def _read(self, width: int, offset: int) -> int:
        self.seen.append((f"read{width}", offset))
        return int.from_bytes(self.memory[offset : offset + width // 8], "little")

    def _write(self, width: int, offset: int, value: int) -> None:
        self.seen.append((f"write{width}", offset, value))
        self.memory[offset : offset + width // 8] = value.to_bytes(width // 8, "little")

    def read8(self, offset: int) -> int:
        return self._read(8, offset)

    def read16(self, offset: int) -> int:
        return self._read(16, offset)

    def read32(self, offset: int) -> int:
        return self._read(32, offset)

    def read64(self, offset: int) -> int:
        return self._read(64, offset)

    def write8(self, offset: int, value: int) -> None:
        self._write(8, offset, value)

    def write16(self, offset: int, value: int) -> None:
        self._write(16, offset, value)

    def write32(self, offset: int, value: int) -> None:
        self._write(32, offset, value)

    def write64(self, offset: int, value: int) -> None:
        self._write(64, offset, value)

    def __repr__(self) -> str:
        return "<Space>"


WIDTHS: list[Width] = [8, 16, 32, 64]


def make_block(name: str, body: dict[str, Any], **kwargs: Any) -> Any:
    return types.new_class(name, (RegisterBlock,), kwargs, lambda namespace: namespace.update(body))


class Queue(RegisterBlock, width=32):
    base = Register(0x00, width=64)
    head = Register(0x08, access="ro")
    tail = Register(0x0C, access="wo")


class Card(RegisterBlock, width=32):
    ident = Register(0x00, access="ro")
    ack = Register(0x04, access="wo")
    control = Register(0x08, fields={"enable": bit(0), "mode": bits(7, 4), "level": bits(31, 16)})
    status = Register(
        0x0C,
        fields={"ready": bit(0, "ro"), "error": bit(1, "w1c"), "kick": bit(2, "wo"), "mask": bits(11, 8)},
    )
    cause = Register(0x10, access="w1c", fields={"rx": bit(0), "tx": bit(1)})
    fifo = Register(0x14, access="ro", side_effects=True)
    byte = Register(0x18, width=8)
    word = Register(0x1A, width=16)
    address = Register(0x20, width=64)
    limit = Register(0x40, count=4, stride=8)
    tight = Register(0x44, width=16, count=2)
    queue = Nested(Queue, 0x100, count=3, stride=0x40)
    spare = Nested(Queue, 0x80)


@pytest.fixture
def space() -> Space:
    return Space()


@pytest.fixture
def card(space: Space) -> Card:
    return Card(space)


def test_the_example_of_the_guide(space: Space) -> None:
    class Edu(RegisterBlock, width=32):
        irq_status = Register(0x24, access="ro")
        irq_ack = Register(0x64, access="wo")
        dma_src = Register(0x80, width=64)
        dma_cmd = Register(0x98, width=64, fields={"start": bit(0), "to_ram": bit(1), "irq": bit(2)})

    space.memory[0x24] = 7
    regs = Edu(space)
    regs.dma_src.write(0x1_2345_6789)
    regs.dma_cmd.write(start=1, irq=1)
    regs.irq_ack.write(regs.irq_status.read())
    assert space.seen == [
        ("write64", 0x80, 0x1_2345_6789),
        ("write64", 0x98, 0b101),
        ("read32", 0x24),
        ("write32", 0x64, 7),
    ]


@pytest.mark.parametrize(
    ("name", "access"),
    [
        ("byte", ("read8", 0x18)),
        ("word", ("read16", 0x1A)),
        ("ident", ("read32", 0)),
        ("address", ("read64", 0x20)),
    ],
)
def test_a_read_is_one_access_of_the_width(
    space: Space, card: Card, name: str, access: tuple[str, int]
) -> None:
    space.memory[access[1] : access[1] + 9] = bytes(range(0xF1, 0xFA))
    value = getattr(card, name).read()
    size = int(access[0].removeprefix("read")) // 8
    assert value == int.from_bytes(range(0xF1, 0xF1 + size), "little")
    assert space.seen == [access]


def test_a_write_is_one_access_of_the_width(space: Space, card: Card) -> None:
    for register in (card.byte, card.word, card.control, card.address):
        register.write((1 << register.layout.width) - 1)
    assert space.seen == [
        ("write8", 0x18, 0xFF),
        ("write16", 0x1A, 0xFFFF),
        ("write32", 0x08, 0xFFFF_FFFF),
        ("write64", 0x20, 0xFFFF_FFFF_FFFF_FFFF),
    ]


def test_a_block_may_start_anywhere_in_its_space(space: Space) -> None:
    Card(space, 0x200).ack.write(5)
    assert space.seen == [("write32", 0x204, 5)]


def test_fields_are_written_with_all_other_bits_zero(space: Space, card: Card) -> None:
    card.control.write(0xFFFF_FFFF)
    card.control.write(mode=0xA, enable=True)
    assert space.seen[1:] == [("write32", 8, 0xA1)]


def test_fields_replace_bits_of_a_value(space: Space, card: Card) -> None:
    card.control.write(0xFFFF_FFFF, mode=0)
    assert space.seen == [("write32", 8, 0xFFFF_FF0F)]


def test_fields_are_read_in_one_access(space: Space, card: Card) -> None:
    card.control.write(0x1234_00A1)
    assert card.control.read_fields() == {"enable": 1, "mode": 0xA, "level": 0x1234}
    assert card.control.read_field("level") == 0x1234
    assert space.seen[1:] == [("read32", 8), ("read32", 8)]


def test_an_update_keeps_other_fields(space: Space, card: Card) -> None:
    card.control.write(0x1234_5678)
    card.control.update(mode=0, enable=1)
    assert space.seen[1:] == [("read32", 8), ("write32", 8, 0x1234_5609)]


def test_an_update_writes_0_to_other_w1c_and_wo_fields(space: Space, card: Card) -> None:
    """Bits that a 1 clears or triggers must not be written back as they were read."""
    space.memory[0x0C:0x10] = (0xFFFF_FFFF).to_bytes(4, "little")
    card.status.update(mask=5)
    card.status.update(error=1)
    assert space.seen[1] == ("write32", 0x0C, 0xFFFF_F5F9)
    assert space.seen[3] == ("write32", 0x0C, 0xFFFF_F5FB)


def test_fields_that_cannot_be_read_are_left_out(card: Card) -> None:
    assert set(card.status.read_fields()) == {"ready", "error", "mask"}


def test_registers_that_repeat(space: Space, card: Card) -> None:
    for register in card.limit:
        register.write(1)
    card.tight[1].write(2)
    assert len(card.limit) == 4
    assert [access[:2] for access in space.seen] == [
        ("write32", 0x40),
        ("write32", 0x48),
        ("write32", 0x50),
        ("write32", 0x58),
        ("write16", 0x46),
    ]


def test_blocks_within_a_block(space: Space, card: Card) -> None:
    card.queue[2].tail.write(1)
    card.spare.base.write(2)
    assert space.seen == [("write32", 0x18C, 1), ("write64", 0x80, 2)]
    assert card.queue[2] is card.queue[2]


def test_a_subclass_inherits_registers(space: Space) -> None:
    class Newer(Queue):
        depth = Register(0x10)

    newer = Newer(space)
    newer.depth.write(1)
    newer.tail.write(2)
    assert space.seen == [("write32", 0x10, 1), ("write32", 0x0C, 2)]


REFUSED: dict[str, tuple[Callable[[Card], object], str]] = {
    "too wide": (
        lambda c: c.control.write(1 << 32),
        "Card.control takes 0 to 0xffffffff, not 0x100000000",
    ),
    "negative": (lambda c: c.byte.write(-1), "Card.byte takes 0 to 0xff, not -0x1"),
    "nothing": (lambda c: c.control.write(), "Card.control needs a value or a field"),
    "read-only": (lambda c: c.ident.write(1), "Card.ident is read-only, and cannot be written"),
    "write-only": (lambda c: c.ack.read(), "Card.ack is write-only, and cannot be read"),
    "fields of what is write-only": (
        lambda c: c.ack.read_fields(),
        "Card.ack is write-only, and cannot be read",
    ),
    "unknown field": (lambda c: c.control.write(moed=1), "Card.control has no field moed"),
    "no fields": (lambda c: c.ident.read_field("a"), "Card.ident has no field a"),
    "field too wide": (
        lambda c: c.control.write(mode=16),
        "Card.control, field mode, takes 0 to 0xf, not 0x10",
    ),
    "field negative": (
        lambda c: c.control.update(enable=-1),
        "Card.control, field enable, takes 0 to 0x1, not -0x1",
    ),
    "value too wide under a field": (
        lambda c: c.control.write(1 << 40, enable=1),
        "Card.control takes 0 to 0xffffffff, not 0x10000000000",
    ),
    "field read-only": (
        lambda c: c.status.write(ready=1),
        "Card.status, field ready, is read-only, and cannot be written",
    ),
    "field read-only in an update": (
        lambda c: c.status.update(ready=1),
        "Card.status, field ready, is read-only, and cannot be written",
    ),
    "field write-only": (
        lambda c: c.status.read_field("kick"),
        "Card.status, field kick, is write-only, and cannot be read",
    ),
    "update of what is read-only": (
        lambda c: c.ident.update(a=1),
        "Card.ident cannot be updated: its access is ro, not rw",
    ),
    "update of what is write-only": (
        lambda c: c.ack.update(a=1),
        "Card.ack cannot be updated: its access is wo, not rw",
    ),
    "update of what writing clears": (
        lambda c: c.cause.update(rx=1),
        "Card.cause cannot be updated: its access is w1c, not rw",
    ),
    "update of nothing": (lambda c: c.control.update(), "Card.control needs a value or a field"),
    "beyond an array": (lambda c: c.limit[4], "Card.limit has elements 0 to 3, not 4"),
    "before an array": (lambda c: c.limit[-1], "Card.limit has elements 0 to 3, not -1"),
    "in an element": (
        lambda c: c.queue[1].head.write(0),
        "Card.queue[1].head is read-only, and cannot be written",
    ),
    "assignment": (
        lambda c: setattr(c, "control", 1),
        "Card.control is a register, and cannot be replaced by a value",
    ),
    "wait for what is write-only": (
        lambda c: c.status.wait_until(kick=1, timeout=0),
        "Card.status, field kick, is write-only, and cannot be read",
    ),
    "wait for what cannot be": (
        lambda c: c.byte.wait_until(0x100, timeout=0),
        "Card.byte takes 0 to 0xff, not 0x100",
    ),
    "wait for nothing": (
        lambda c: c.byte.wait_until(timeout=0),
        "Card.byte needs a value or a field",
    ),
    "wait without end": (
        lambda c: c.byte.wait_until(1, timeout=float("inf")),
        "Card.byte cannot be awaited for inf s",
    ),
    "wait for no number": (
        lambda c: c.byte.wait_until(1, timeout=float("nan")),
        "Card.byte cannot be awaited for nan s",
    ),
    "wait for less than nothing": (
        lambda c: c.byte.wait_until(1, timeout=-1),
        "Card.byte cannot be awaited for -1 s",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_uses_are_refused_before_the_device_sees_them(space: Space, card: Card, case: str) -> None:
    act, message = REFUSED[case]
    with pytest.raises(RegisterError) as caught:
        act(card)
    assert str(caught.value) == message
    assert isinstance(caught.value, VfioToolError)
    assert space.seen == []


def test_the_error_of_an_unknown_field_lists_the_fields(card: Card) -> None:
    with pytest.raises(RegisterError) as caught:
        card.control.update(moed=1)
    assert caught.value.hint == "its fields: enable, mode, level"


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"a": Register(0, width=24)}, "Bad.a: its width is 24, not 8, 16, 32 or 64"),  # type: ignore[call-overload]
    "access": ({"a": Register(0, access="rx")}, "Bad.a: its access is 'rx', not one of ro, wo, rw, w1c"),  # type: ignore[call-overload]
    "misaligned": ({"a": Register(2)}, "Bad.a: offset 0x2 is no multiple of 4 bytes"),
    "negative offset": ({"a": Register(-4)}, "Bad.a: offset -0x4 is no multiple of 4 bytes"),
    "no element": ({"a": Register(0, count=0)}, "Bad.a: its count is 0"),
    "stride alone": ({"a": Register(0, stride=4)}, "Bad.a: it has a stride, but no count"),  # type: ignore[call-overload]
    "stride too small": (
        {"a": Register(0, width=64, count=2, stride=4)},
        "Bad.a: stride 0x4 is too small, or no multiple of 8 bytes",
    ),
    "stride misaligned": (
        {"a": Register(0, count=2, stride=6)},
        "Bad.a: stride 0x6 is too small, or no multiple of 4 bytes",
    ),
    "field outside": (
        {"a": Register(0, fields={"f": bit(32)})},
        "Bad.a, field f: 32 to 32 are not bits of a register of 32 bits",
    ),
    "field upside down": (
        {"a": Register(0, fields={"f": bits(4, 7)})},
        "Bad.a, field f: 4 to 7 are not bits of a register of 32 bits",
    ),
    "field below": (
        {"a": Register(0, fields={"f": bits(0, -1)})},
        "Bad.a, field f: 0 to -1 are not bits of a register of 32 bits",
    ),
    "fields overlap": (
        {"a": Register(0, fields={"f": bits(7, 4), "g": bits(4, 0)})},
        "Bad.a: its fields f and g overlap",
    ),
    "field's access": (
        {"a": Register(0, access="ro", fields={"f": bit(0, "rw")})},
        "Bad.a, field f: its access is 'rw', in a register of 'ro'",
    ),
    "field's access is none": (
        {"a": Register(0, fields={"f": bit(0, "rx")})},  # type: ignore[arg-type]
        "Bad.a, field f: its access is 'rx', in a register of 'rw'",
    ),
    "overlap": (
        {"a": Register(0, width=64), "b": Register(4)},
        "Bad: a and b overlap, and neither has overlaps=True",
    ),
    "overlap with an element": (
        {"a": Register(0, count=4, stride=8), "b": Register(0x14), "c": Register(0x18, width=8)},
        "Bad: c and a[3] overlap, and neither has overlaps=True",
    ),
    "overlap within blocks": (
        {"a": Nested(Queue, 0, count=2, stride=0x20), "b": Register(0x28)},
        "Bad: a[1].head and b overlap, and neither has overlaps=True",
    ),
    "blocks too close": (
        {"a": Nested(Queue, 0, count=2, stride=8)},
        "Bad.a: stride 0x8 is too small, or no multiple of 8 bytes",
    ),
    "block misaligned": ({"a": Nested(Queue, 4)}, "Bad.a: offset 0x4 is no multiple of 8 bytes"),
    "a name of every block's": ({"dump": Register(0)}, "Bad.dump: every block uses this name itself"),
    "a private name": ({"_space": Register(0)}, "Bad._space: every block uses this name itself"),
    "one for two names": (
        dict.fromkeys(("a", "b"), Register(0)),
        "Bad.b: it is a already: each name needs a separate definition",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_definition_that_contradicts_itself_makes_no_class(case: str) -> None:
    body, message = CONTRADICTIONS[case]
    with pytest.raises(RegisterError) as caught:
        make_block("Bad", body, width=32)
    assert str(caught.value) == message


def test_a_name_used_twice_makes_no_class() -> None:
    with pytest.raises(RegisterError, match=r"^Twice\.a: the name is used twice$"):

        class Twice(RegisterBlock, width=32):
            a = Register(0)
            a = Register(4)  # noqa: PIE794 - the mistake


def test_a_register_without_a_width_makes_no_class() -> None:
    with pytest.raises(RegisterError, match=r"^Wide\.a: its width is None, not 8, 16, 32 or 64$"):

        class Wide(RegisterBlock):
            a = Register(0)


def test_registers_with_overlaps_may_overlap(space: Space) -> None:
    class Uart(RegisterBlock, width=8):
        received = Register(0, access="ro")
        sent = Register(0, access="wo", overlaps=True)
        both = Register(0, width=16, overlaps=True)
        line = Register(1)

    class Two(RegisterBlock):
        first = Nested(Uart, 0)
        again = Nested(Uart, 0, overlaps=True)

    Two(space).again.sent.write(9)
    assert space.seen == [("write8", 0, 9)]


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (0xF00, "Card does not fit: 0x190 bytes at 0xf00 of 0x1000"),
        (-8, "Card does not fit: 0x190 bytes at -0x8 of 0x1000"),
        (4, "Card at 0x4 is not aligned: it has registers of 8 bytes"),
    ],
)
def test_a_block_that_does_not_fit(space: Space, offset: int, message: str) -> None:
    with pytest.raises(RegisterError) as caught:
        Card(space, offset)
    assert str(caught.value) == message


def test_a_block_that_just_fits() -> None:
    assert Queue(Space(0x10)).head.read() == 0
    with pytest.raises(RegisterError):
        Queue(Space(0x0F))


def test_dump_reads_registers_without_side_effects(space: Space, card: Card) -> None:
    card.control.write(7)
    card.queue[1].base.write(0x1_0000_0000)
    del space.seen[:]
    values = card.dump()
    assert values["control"] == 7
    assert values["queue[1].base"] == 0x1_0000_0000
    assert list(values) == [
        "ident", "control", "status", "cause", "byte", "word", "address",
        "limit[0]", "limit[1]", "limit[2]", "limit[3]", "tight[0]", "tight[1]",
        "queue[0].base", "queue[0].head", "queue[1].base", "queue[1].head", "queue[2].base", "queue[2].head",
        "spare.base", "spare.head",
    ]  # fmt: skip
    assert len(space.seen) == len(values)
    assert all(access.startswith("read") for access, _ in space.seen)


def test_repr_does_not_access_the_device(space: Space) -> None:
    card = Card(space, 0x200, name="0000:00:10.0")
    assert repr(card) == "<0000:00:10.0, 0x190 bytes at 0x200 of <Space>>"
    assert repr(card.queue[1].head) == "<0000:00:10.0.queue[1].head at 0x348, 32 bits, ro>"
    assert repr(card.queue) == "<0000:00:10.0.queue, 3 elements>"
    assert repr(Card.ident) == "<Register ident at 0x0, 32 bits, ro>"
    assert repr(Card.spare) == "<Nested spare at 0x80, Queue>"
    assert space.seen == []


class Counting(Space):
    """A device whose register at 0 counts its reads, up to a last value."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def read32(self, offset: int) -> int:
        self.seen.append(("read32", offset))
        return min(len(self.seen), self.last)


class Counter(RegisterBlock, width=32):
    count = Register(0, fields={"low": bits(2, 0), "high": bits(31, 3)})


def test_waiting_for_a_value() -> None:
    space = Counting(last=20)
    assert Counter(space).count.wait_until(5, timeout=60) == 5
    assert len(space.seen) == 5


def test_waiting_for_fields() -> None:
    assert Counter(Counting(last=20)).count.wait_until(low=2, high=1, timeout=60) == 10


def test_waiting_for_a_condition() -> None:
    assert Counter(Counting(last=20)).count.wait_for(lambda value: value > 6, timeout=60) == 7


def test_waiting_times_out() -> None:
    space = Counting(last=3)
    with pytest.raises(RegisterTimeoutError) as caught:
        Counter(space).count.wait_until(low=7, high=0, timeout=0.002)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert str(error).startswith(
        "Counter.count did not show low=0x7 high=0x0 within 0.002 s: it last read 0x"
    )
    assert error.last == min(len(space.seen), 3)
    assert error.hint == ""


def test_a_timeout_of_0_is_a_single_read() -> None:
    space = Counting(last=3)
    with pytest.raises(
        RegisterTimeoutError, match="did not show the awaited value within 0 s: it last read 0x1"
    ):
        Counter(space).count.wait_for(lambda value: value == 2, timeout=0)
    assert len(space.seen) == 1
    assert Counter(space).count.wait_until(2, timeout=0) == 2


def test_waiting_for_a_device_that_is_gone() -> None:
    card = Card(Space())
    card.byte.write(0xFF)
    with pytest.raises(RegisterTimeoutError, match="did not show ready or failed") as caught:
        card.byte.wait_for(lambda value: value == 1, timeout=0, awaited="ready or failed")
    assert caught.value.hint == "all ones: the device may be gone, in reset or without power"


def test_waiting_sleeps_between_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only sleep advances: few reads, short pauses, and a last read at the end."""
    now = [100.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("vfiotool.drivers.device_register.time.sleep", sleep)
    monkeypatch.setattr("vfiotool.drivers.device_register.time.monotonic", lambda: now[0])
    space = Counting(last=1)
    with pytest.raises(RegisterTimeoutError):
        Counter(space).count.wait_until(2, timeout=1.0)
    assert pauses == sorted(pauses)
    assert max(pauses) == 1e-3
    assert now[0] - 100.0 == pytest.approx(1.0, abs=1e-3)
    assert len(space.seen) == len(pauses) + 1 < 1050


def test_a_freed_block_releases_its_space() -> None:
    """At once, and not at the next garbage collection: a space owns a mapping of the device."""
    space = Space()
    gone = weakref.ref(space)
    card = Card(space)
    card.queue[1].head.read()
    card.limit[2].write(1)
    gc.disable()
    try:
        del space, card
        assert gone() is None
    finally:
        gc.enable()


@given(st.data())
def test_fields_against_arithmetic(data: st.DataObject) -> None:
    """Split a register at random bits, and write each part by shifts and by names."""
    width = data.draw(st.sampled_from(WIDTHS))
    cuts = sorted(data.draw(st.sets(st.integers(1, width - 1), max_size=6)) | {0, width})
    parts = list(pairwise(cuts))
    fields: dict[str, Field] = {f"f{low}": bits(high - 1, low) for low, high in parts}
    register = Register(0, width=width, fields=fields)
    space: RegisterSpace = Space()
    bound: DeviceRegister = make_block("Any", {"any": register})(space).any
    value = data.draw(st.integers(0, (1 << width) - 1))
    expected = {f"f{low}": value >> low & (1 << high - low) - 1 for low, high in parts}
    bound.write(value)
    assert bound.read_fields() == expected
    bound.write(0)
    bound.write(**expected)
    assert bound.read() == value
    for name, number in expected.items():
        bound.update(**{name: 0})
        bound.update(**{name: number})
    assert bound.read() == value


def test_types(card: Card) -> None:
    """The types for a type checker are the types at run time."""
    one: DeviceRegister = card.ident
    many: RegisterArray[DeviceRegister] = card.limit
    block: Queue = card.spare
    blocks: RegisterArray[Queue] = card.queue
    declared: Register[DeviceRegister] = Card.ident
    for found, kind in (
        (one, DeviceRegister),
        (many, RegisterArray),
        (block, Queue),
        (blocks, RegisterArray),
        (declared, Register),
    ):
        assert isinstance(found, kind)
