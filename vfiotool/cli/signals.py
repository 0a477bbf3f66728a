"""Being told to end: what is under way is put right first."""

from __future__ import annotations

import signal
from typing import NoReturn


def unwind_when_told_to_end() -> None:
    """Have SIGTERM and SIGHUP raise ``SystemExit``, as Ctrl-C raises ``KeyboardInterrupt``."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _unwind)


def _unwind(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
