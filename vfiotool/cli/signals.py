"""Signals that end vfiotool: the verb first undoes or finishes its changes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

_END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise ``SystemExit``, as Ctrl-C raises ``KeyboardInterrupt``."""
    for number in _END_SIGNALS:
        signal.signal(number, _unwind)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore SIGTERM, SIGHUP and Ctrl-C during a ``with`` block, which restores the machine's state.

    A signal mask is not enough if there are other threads: each of them can receive the signal.
    """
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (*_END_SIGNALS, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _unwind(number: int, _frame: object) -> NoReturn:
    for one in _END_SIGNALS:  # a second signal must not interrupt the clean-up
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)
