"""The checks of ``doctor`` for a terminal: a line each, and below it what to do."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.host.doctor import Check
from vfiotool.util.text import printable

_WORDS = {True: "ok", False: "FAIL", None: "?"}


def print_checks(checks: Iterable[Check]) -> None:
    """Print each check; lines are left whole, so that a remedy can be copied."""
    for check in checks:
        print(f"{_WORDS[check.ok]:<5} {check.name:<20} {printable(check.detail)}")
        if check.remedy is not None:
            print(f"{'':5} {'remedy:':<20} {printable(check.remedy)}")
