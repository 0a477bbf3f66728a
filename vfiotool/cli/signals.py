"""Being told to end: what is under way is put right first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

_TOLD = (signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """Have SIGTERM and SIGHUP raise ``SystemExit``, as Ctrl-C raises ``KeyboardInterrupt``."""
    for number in _TOLD:
        signal.signal(number, _unwind)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Take no notice of being told to end, nor of Ctrl-C, for a ``with`` block: it puts things right.

    A mask would not do, where there are other threads: any of them takes signals for the main one.
    """
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (*_TOLD, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _unwind(number: int, _frame: object) -> NoReturn:
    for one in _TOLD:  # to be told again is no news, and must not come between
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)
