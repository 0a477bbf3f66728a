"""The checks of ``doctor`` as text: a line for each check, and a line for its remedy."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.host.doctor import Check
from vfiotool.util.text import printable

_WORDS = {True: "ok", False: "FAIL", None: "?"}


def print_checks(checks: Iterable[Check]) -> None:
    """Print each check. Lines are not folded, so that a user can copy a remedy."""
    for check in checks:
        print(f"{_WORDS[check.ok]:<5} {check.name:<20} {printable(check.detail)}")
        if check.remedy is not None:
            print(f"{'':5} {'remedy:':<20} {printable(check.remedy)}")
