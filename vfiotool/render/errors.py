"""Errors and notes, as the command line prints them to stderr."""

from __future__ import annotations

import sys

from vfiotool.errors import GuestLostError, VfioToolError
from vfiotool.util.text import printable


def print_error(error: VfioToolError) -> None:
    """Print an error as an ``error:`` line and, if the error has a hint, a ``hint:`` line."""
    print(f"error: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)
    if isinstance(error, GuestLostError) and error.console:
        print(error.console, file=sys.stderr)


def print_note(text: str) -> None:
    """Print a ``note:`` line at once."""
    print(f"note: {text}", file=sys.stderr, flush=True)
