"""What happened once, as every source of the timeline tells it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

_ADDRESS = re.compile(r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b")


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """``time`` is CLOCK_MONOTONIC in seconds; ``source`` is one of kernel, udev, sysfs, probe and kmsg.

    ``event`` is the source's own name for it: a uevent's action, a function, a log level. ``seqnum``
    numbers uevents of this boot, or records of the kernel's log. ``detail`` is what else there is to say.
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
    """Where entries come from. A handle: one thread uses it."""

    def fileno(self) -> int | None:
        """Return what polls readable when entries wait; ``None`` where only looking tells."""

    def read(self) -> Iterable[TimelineEntry]:
        """Return what waits, without waiting for more."""

    def close(self) -> None:
        """Stop, and leave nothing behind. Any number of times."""


def now() -> float:
    """Return CLOCK_MONOTONIC in seconds."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def find_address(text: str) -> str | None:
    """Return the first PCI address in a text."""
    found = _ADDRESS.search(text)
    return found[0] if found else None
