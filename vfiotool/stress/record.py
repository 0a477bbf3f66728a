"""What a run does, operation by operation: what was asked for, what must come of it, and what came.

What a worker sends of each operation is made of named tuples: a frozen dataclass takes three times as long
to send.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Arguments = Mapping[str, "int | str"]

DONE = frozenset((0,))


@dataclass(frozen=True, slots=True)
class Call:
    """One operation, as a trace has it: a name, and plain numbers and texts.

    ``name`` is the kernel's term for it (``SET_CONTAINER``, ``unbind``, ``map``), ``arguments`` say to what.
    """

    name: str
    arguments: Arguments = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])


class ExpectedUevent(NamedTuple):
    """A uevent: ``address`` is None for the node of a group."""

    subsystem: str
    action: str
    address: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.action, self.subsystem, self.address)))


class Expectation(NamedTuple):
    """What must come of an action.

    One of ``errnos``, where 0 is success; ``value``, where it matters, is what a success gives: flags, bytes,
    pages, interrupts. ``waits_for`` says until when it blocks, ``crash`` which line of the kernel would end
    the machine. ``signs`` and ``probes`` are the uevents and functions that follow, once it is done.
    ``pairs``, of two operations at once, are what both may give: ``waits and ENODEV``.
    """

    errnos: frozenset[int] = DONE
    value: int | None = None
    waits_for: str = ""
    crash: str = ""
    uevents: tuple[ExpectedUevent, ...] = ()
    probes: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    def allows(self, outcome: Outcome) -> bool:
        """Say whether this is what must come of it."""
        if outcome.errno not in self.errnos or outcome.note:
            return False
        return self.value is None or outcome.errno != 0 or outcome.value == self.value

    def __str__(self) -> str:
        if self.pairs:
            return ", or ".join(self.pairs)
        if self.waits_for:
            return f"to wait until {self.waits_for}"
        names = " or ".join(sorted(errno_name(one) for one in self.errnos))
        return names if self.value is None or 0 not in self.errnos else f"{names}, {self.value}"


class Outcome(NamedTuple):
    """What came of an action: an errno or 0, a value, and, where it did not go as told, a note of how.

    ``proved`` is the one of several expectations that it turned out to be: of two operations at once, either
    may have been the first.
    """

    errno: int = 0
    value: int = 0
    note: str = ""
    proved: Expectation | None = None

    def __str__(self) -> str:
        return self.note or (f"0, {self.value}" if self.value and not self.errno else errno_name(self.errno))


class Record(NamedTuple):
    """An operation that was done. ``at`` is CLOCK_MONOTONIC in seconds, ``took_us`` microseconds.

    ``unit`` numbers the group of devices, ``cycle`` what the workload did in one piece; ``group`` is the
    number that the kernel has for the group now. ``released`` names the operation that waited for this one,
    which no workload chose.
    """

    at: float
    took_us: float
    unit: int
    workload: str
    cycle: int
    call: Call
    expected: Expectation
    outcome: Outcome
    released: str = ""
    group: int = 0

    @property
    def is_unexpected(self) -> bool:
        """Say whether something else came of it than had to."""
        return not self.expected.allows(self.outcome)

    def document(self) -> dict[str, Any]:
        """Return it as a line of a trace has it."""
        line: dict[str, Any] = {
            "at": round(self.at, 6),
            "us": round(self.took_us, 1),
            "unit": self.unit,
            "workload": self.workload,
            "cycle": self.cycle,
            "operation": self.call.name,
            "arguments": dict(self.call.arguments),
            "expected": str(self.expected),
            "got": str(self.outcome),
        }
        if self.is_unexpected:
            line["unexpected"] = True
        if self.released:
            line["released"] = self.released
        return line


NOTHING = Record(0.0, 0.0, 0, "", 0, Call(""), Expectation(), Outcome())
"""What the records of a cycle are made from."""


def errno_name(code: int) -> str:
    """Return an errno's name, ``0`` for success, and the number of one that has no name."""
    return errno.errorcode.get(code, str(code)) if code else "0"
