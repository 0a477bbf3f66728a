"""HTML elements: text is escaped, and control characters are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vfiotool.util.text import printable

_MOST_TEXT = 20_000
NONE = "–"  # noqa: RUF001 - the dash of a table's empty cell


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


def plain(value: Any) -> str:
    """Return a value of a report as text for a reader."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or NONE
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or NONE
    return str(value)


def duration(us: float) -> str:
    """Return a duration (microseconds) as text with two or three digits, in a suitable unit."""
    for limit, one, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms"), (6e7, 1e6, "s")):
        if us < limit * 0.9995:
            return f"{_short(us / one)} {unit}"
    seconds = round(us / 1e6)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _escaped(value: object) -> str:
    text = str(value)[:_MOST_TEXT]
    return escape("\n".join(printable(line) for line in text.split("\n")))
