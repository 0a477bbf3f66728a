"""The entries of the timeline, and the protocol of the sources that yield them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

_ADDRESS = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b")


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """An event of the timeline.

    ``time`` is CLOCK_MONOTONIC in seconds. ``source`` is ``kernel``, ``udev``, ``sysfs``, ``probe`` or
    ``kmsg``. ``event`` is the source's name of the event: the action of a uevent, a function, a log level.
    ``seqnum`` is the number of a uevent since boot, or of a record in the kernel's log. ``detail`` is
    further text.
    """

    time: float
    source: str
    event: str
    address: str | None = None
    group: int | None = None
    driver: str | None = None
    seqnum: int | None = None
    detail: str = ""


class EventSource(Protocol):
    """A source of entries. A handle for use by a single thread."""

    def fileno(self) -> int | None:
        """Return a descriptor that polls readable when entries are ready; ``None`` if there is none."""

    def read(self) -> Iterable[TimelineEntry]:
        """Return the entries that are ready, without waiting."""

    def close(self) -> None:
        """Stop the source and release its resources. Any number of times."""


def now() -> float:
    """Return CLOCK_MONOTONIC in seconds."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def find_address(text: str) -> str | None:
    """Return the first PCI address in a text."""
    found = _ADDRESS.search(text)
    return found[0] if found else None
