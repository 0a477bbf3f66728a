"""Values as text for a reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_NONE = "–"  # noqa: RUF001 - the dash of a table's empty cell


def plain(value: Any) -> str:
    """Return a value of a report as text for a reader."""
    if value is None or value == "":
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or _NONE
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or _NONE
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


def size_text(size: int) -> str:
    """Return a size in bytes as lspci writes it: ``[size=32M]``, exact, in the largest unit that is whole."""
    units = ["", "K", "M", "G", "T"]
    while size and size % 1024 == 0 and len(units) > 1:
        size //= 1024
        del units[0]
    return f"[size={size}{units[0]}]"


def ranges_text(numbers: Iterable[int]) -> str:
    """Return sorted numbers as text, neighbours as a range: ``24 26-29``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return " ".join("-".join(map(str, run)) for run in runs)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
