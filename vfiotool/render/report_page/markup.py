"""HTML elements: text is escaped, and control characters are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vfiotool.util.text import printable

_MOST_TEXT = 20_000


class Markup(str):
    """Text that is HTML. Only ``element`` and ``joined`` make markup from unsafe text."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element. The attribute ``class_`` is ``class``, and ``stroke_width`` is ``stroke-width``."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    shown = "".join(f' {key}="{_escaped(value)}"' for key, value in named)
    return Markup(f"<{name}{shown}>{joined(children)}</{name}>")


def joined(children: Sequence[object]) -> Markup:
    """Concatenate children; text that is not markup is escaped."""
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children))


def _escaped(value: object) -> str:
    text = str(value)[:_MOST_TEXT]
    return escape("\n".join(printable(line) for line in text.split("\n")))
