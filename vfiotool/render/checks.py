"""The checks of ``doctor`` as text: a line for each check, and a line for its remedy."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.host.doctor import Check
from vfiotool.render.terminal import print_entry, whole

_WORDS = {True: "ok", False: "FAIL", None: "?"}


def print_checks(checks: Iterable[Check]) -> None:
    """Print each check. A remedy is not folded, so that a user can copy it."""
    for check in checks:
        print_entry(f"{_WORDS[check.ok]:<5} {check.name:<20} ", check.detail)
        if check.remedy is not None:
            print_entry(f"{'':5} {'remedy:':<20} ", whole(check.remedy))
