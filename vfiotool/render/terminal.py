"""Output of tables and text to a terminal, by rich."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vfiotool.util.text import printable

_PIPE_WIDTH = 200


def show(renderable: Table | Text) -> None:
    """Print to stdout. Lines are folded to the width of a terminal; in a pipe, lines stay whole."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    console.print(renderable, soft_wrap=isinstance(renderable, Text))


def literal(text: str, *, style: str = "") -> Text:
    """Return text without markup: brackets are literal, and control characters are replaced."""
    return Text(printable(text), style=style)
