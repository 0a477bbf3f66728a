"""The result of a check of ``vfiotool doctor``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check; ``ok`` is ``None`` if the check cannot decide.

    ``remedy`` is a command for root to run, or an action to take; ``None`` if there is nothing to do.
    """

    ok: bool | None
    detail: str
    remedy: str | None = None
