"""Why a device must not be taken lightly, as readers of the machine state it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """What someone does with a thing: by which rule it counts, and ``text``, a phrase that follows the
    thing's name (``is mounted on /srv``)."""

    rule: str
    text: str


def some(names: Sequence[str]) -> str:
    """Name a few of what may be many."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
