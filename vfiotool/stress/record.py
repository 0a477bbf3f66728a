"""The records of a run: each call, what the model expects of the call, and what the kernel did.

A worker sends records as named tuples: sending a frozen dataclass takes three times as long.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Arguments = Mapping[str, "int | str"]

DONE = frozenset((0,))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation, as a trace holds the call: a name, and plain numbers and texts.

    ``name`` is the kernel's term (``SET_CONTAINER``, ``unbind``, ``map``); ``arguments`` name the target.
    """

    name: str
    arguments: Arguments = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])


class ExpectedUevent(NamedTuple):
    """A uevent that must follow a call: of a device, or of a group's node.

    A prediction of the model names a device by ``member``, its index in the group, a record by ``address``.
    For the node of a group, both are None.
    """

    subsystem: str
    action: str
    address: str | None = None
    member: int | None = None

    def resolved(self, members: Sequence[str], node: str | None = None) -> ExpectedUevent:
        """Return the uevent of a prediction with addresses; ``node`` is the address of a group's node."""
        address = node if self.member is None else members[self.member]
        return ExpectedUevent(self.subsystem, self.action, address)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.action, self.subsystem, self.address)))


class Expectation(NamedTuple):
    """The outcome that the model expects of a call.

    The call must return one of ``errnos``; 0 is success. ``value`` is the value of a success (flags, bytes,
    pages, interrupts), or None if any value is right. ``waits_for`` names the condition until which the call
    blocks, or is empty. ``crash`` names the kernel's line that would end the machine, or is empty.
    ``uevents`` and ``probes`` are the uevents and kernel functions that follow a success. ``pairs`` are the
    permitted results of two concurrent operations, such as ``waits and ENODEV``.
    """

    errnos: frozenset[int] = DONE
    value: int | None = None
    waits_for: str = ""
    crash: str = ""
    uevents: tuple[ExpectedUevent, ...] = ()
    probes: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    def allows(self, outcome: Outcome) -> bool:
        """Return True if the outcome is as expected."""
        if outcome.errno not in self.errnos or outcome.note:
            return False
        return self.value is None or outcome.errno != 0 or outcome.value == self.value

    def __str__(self) -> str:
        if self.pairs:
            return ", or ".join(self.pairs)
        if self.waits_for:
            return f"to wait until {self.waits_for}"
        names = " or ".join(sorted(errno_name(code) for code in self.errnos))
        return names if self.value is None or 0 not in self.errnos else f"{names}, {self.value}"


class Outcome(NamedTuple):
    """The outcome of a call: an errno or 0, a value, and a note if the call failed in another way.

    ``proved`` is the expectation that turned out to apply, if several were possible: of two concurrent
    operations, either may have come first.
    """

    errno: int = 0
    value: int = 0
    note: str = ""
    proved: Expectation | None = None

    def __str__(self) -> str:
        return self.note or (f"0, {self.value}" if self.value and not self.errno else errno_name(self.errno))


@dataclass(frozen=True, slots=True)
class TraceLine:
    """A record in the form of a trace. ``at`` is CLOCK_MONOTONIC in seconds, ``us`` is in microseconds.

    ``expected`` and ``got`` are texts for people; ``released`` is as in ``Record``.
    """

    unit: int
    workload: str
    cycle: int
    call: Call
    expected: str
    got: str
    unexpected: bool
    released: str
    at: float
    us: float

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the line."""
        line: dict[str, Any] = {
            "at": self.at,
            "us": self.us,
            "unit": self.unit,
            "workload": self.workload,
            "cycle": self.cycle,
            "operation": self.call.name,
            "arguments": dict(self.call.arguments),
            "expected": self.expected,
            "got": self.got,
        }
        if self.unexpected:
            line["unexpected"] = True
        if self.released:
            line["released"] = self.released
        return line


class Record(NamedTuple):
    """A call that was executed. ``at`` is CLOCK_MONOTONIC in seconds, ``took_us`` is in microseconds.

    ``unit`` is the number of the group in the run, ``group`` the kernel's present number of that group.
    ``cycle`` numbers the cycles of the workload. ``released`` names the blocked call that this call
    unblocked: no workload chose this call then.
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
        """Return True if the outcome is not as expected."""
        return not self.expected.allows(self.outcome)

    def line(self) -> TraceLine:
        """Return the record in the form of a trace."""
        return TraceLine(
            unit=self.unit,
            workload=self.workload,
            cycle=self.cycle,
            call=self.call,
            expected=str(self.expected),
            got=str(self.outcome),
            unexpected=self.is_unexpected,
            released=self.released,
            at=round(self.at, 6),
            us=round(self.took_us, 1),
        )


NOTHING = Record(0.0, 0.0, 0, "", 0, Call(""), Expectation(), Outcome())
"""The template of the records of a cycle."""


def errno_name(code: int) -> str:
    """Return the name of an errno, ``0`` for success, and the number of an errno that has no name."""
    return errno.errorcode.get(code, str(code)) if code else "0"
