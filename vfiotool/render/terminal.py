"""How anything is put on a terminal, by rich."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vfiotool.util.text import printable

_PIPE_WIDTH = 200


def show(renderable: Table | Text) -> None:
    """Print; a pipe gets each line whole, a terminal gets them folded to its width."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    console.print(renderable, soft_wrap=isinstance(renderable, Text))


def literal(text: str, *, style: str = "") -> Text:
    """Return text as it is: no brackets of a name are markup, and none of it moves the cursor."""
    return Text(printable(text), style=style)
