"""Claims: the reasons not to take a device from the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """A use of an interface, a disk or a console. ``rule`` names the safety rule that it triggers. ``text``
    is a phrase that follows the name (``is mounted on /srv``)."""

    rule: str
    text: str


def some(names: Sequence[str]) -> str:
    """Return the first few of many names as text."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
