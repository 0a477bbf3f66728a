"""Signals that end vfiotool: the verb first undoes or finishes its changes."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.01


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise ``SystemExit``, as Ctrl-C raises ``KeyboardInterrupt``."""
    for number in _END_SIGNALS:
        signal.signal(number, _unwind)


def resend_lost_signals() -> None:
    """Send a signal again if the exception of its handler was raised in a destructor, which discards it.

    A handler runs between any two instructions of the main thread. pyudev's objects have destructors, so
    without this function an event at the moment of Ctrl-C can cost the Ctrl-C.
    """
    sys.unraisablehook = _resend


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


def _resend(lost: UnraisableHookArgs) -> None:
    number = _signal_of(lost.exc_value)
    if number is None:
        sys.__unraisablehook__(lost)
        return
    import threading  # costs start-up time, and is rarely needed

    if number in _END_SIGNALS:
        signal.signal(number, _unwind)  # which ignores the signal since it ran
    # Later: the exception of a handler that runs in this hook is discarded, too. Only to the main thread, so
    # that its signal mask is respected.
    arguments = threading.main_thread().ident, number
    timer = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, arguments)
    timer.daemon = True
    timer.start()


def _signal_of(error: BaseException | None) -> int | None:
    """Return the signal whose handler raised an exception, or ``None`` for other exceptions."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    if isinstance(error, SystemExit):
        return next((number for number in _END_SIGNALS if error.code == 128 + number), None)
    return None
