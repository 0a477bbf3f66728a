"""One reason why a device must not be taken lightly, as readers of the machine state it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """What someone else does with a thing: by which rule it counts, and ``text``, a phrase that follows
    the thing's name (``is mounted on /srv``)."""

    rule: str
    text: str
