"""What processes hold of the kernel: file descriptors, and memory that is pinned or locked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holdings:
    """Counts of descriptors; ``pinned_kb`` is VmPin, ``locked_kb`` VmLck (proc(5))."""

    fds: int = 0
    pinned_kb: int = 0
    locked_kb: int = 0

    def more_than(self, other: Holdings) -> tuple[str, ...]:
        """Name what these are more of than others."""
        named = (
            ("file descriptors", self.fds - other.fds),
            ("kB of pinned memory (VmPin)", self.pinned_kb - other.pinned_kb),
            ("kB of locked memory (VmLck)", self.locked_kb - other.locked_kb),
        )
        return tuple(f"{more} {name}" for name, more in named if more > 0)


def read_holdings(pids: Iterable[int], proc: str = "/proc") -> Holdings:
    """Return what these processes hold together; one that has ended holds nothing."""
    fds, pinned, locked = 0, 0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fds += len(os.listdir(f"{proc}/{pid}/fd"))
            fields = _status(f"{proc}/{pid}/status")
            pinned += fields.get("VmPin", 0)
            locked += fields.get("VmLck", 0)
    return Holdings(fds, pinned, locked)


def _status(path: str) -> dict[str, int]:
    """Return the fields that are so many kB."""
    fields = dict[str, int]()
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            number, _, unit = value.strip().partition(" ")
            if unit == "kB" and number.isdecimal():
                fields[name] = int(number)
    return fields
