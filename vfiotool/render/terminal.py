"""Lines and tables for a terminal of any width, and for a file or a pipe.

What a reader copies or searches for (an address, ids, the number of a group, a command) is one word here: no
line cuts or folds a word. Free text is folded between words. Only a terminal has a width: in a file or a pipe
each row and each fact is one line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence

from vfiotool.util.text import printable

_JOINED = "\u00a0"  # a space inside a word; printed as a space
_GAP = "  "
_INDENT = 4
_LEAST_ROOM = 24
_DEFAULT_WIDTH = 80
_BOLD, _NOT_BOLD = "\x1b[1m", "\x1b[0m"
# A command in a sentence: the quote begins and ends beside a word, unlike an apostrophe.
_QUOTED = re.compile(r"(?<!\w)'[^']+'(?!\w)")


def whole(text: str) -> str:
    """Return text as one word, which is never folded. Characters that are not printable are replaced."""
    return _printable(text).replace(" ", _JOINED)


def print_title(text: str) -> None:
    """Print a line of its own; on a terminal it is bold."""
    width = terminal_width()
    _print(_folded(text, width, hanging=_INDENT), bold=width is not None)


def print_text(text: str, *, hanging: int = 0) -> None:
    """Print text; its second line and those that follow begin at the column ``hanging``."""
    _print(_folded(text, terminal_width(), hanging=hanging))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below their headings. The last column is free text; a cell of another column is one word.

    If a row is too long for the terminal, its last columns go to further lines below, which are indented.
    """
    width = terminal_width()
    table = [headings, *rows]
    cells = [[*(whole(cell) for cell in row[:-1]), row[-1]] for row in table]
    heading, *others = map(_layout(cells, width).lines, cells)
    _print(heading, bold=width is not None)
    for lines in others:
        _print(lines)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print a line for each label and its text; a fact without a label belongs to the one before."""
    pairs = list(facts)
    column = max((len(label) for label, _ in pairs), default=0) + 2 * len(_GAP)
    for label, text in pairs:
        print_entry(f"{_GAP}{label}".ljust(column), text)


def print_entry(start: str, text: str) -> None:
    """Print text after a start, which keeps its spaces. The text is folded beside the start or, on a narrow
    terminal, below it.
    """
    width = terminal_width()
    column = text_width(start)
    if width is None or width - column >= _LEAST_ROOM:
        _print(_folded(text, width, start=start, hanging=column))
    else:
        below = _folded(text, width, start=" " * _INDENT, hanging=_INDENT)
        _print([*_folded(start.rstrip(), width), *below] if start.strip() else below)


def terminal_width() -> int | None:
    """Return the columns of the terminal that is stdout, or ``None`` if stdout is no terminal."""
    if not sys.stdout.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and 0 < int(columns) < 1 << 16:
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _DEFAULT_WIDTH
    except OSError:
        return _DEFAULT_WIDTH


class _Layout:
    """Which columns of a table are in each of the lines that a row takes."""

    def __init__(self, lines: Sequence[Sequence[int]], widths: Sequence[int], width: int | None) -> None:
        self._lines, self._widths, self._width = lines, widths, width

    @property
    def room(self) -> int:
        """The width that is left in the last line; without a terminal there is no limit."""
        if self._width is None:
            return sys.maxsize
        indent = _INDENT if len(self._lines) > 1 else 0
        return self._width - indent - sum(self._widths[column] + len(_GAP) for column in self._lines[-1])

    def with_column(self, column: int, *, below: bool) -> _Layout:
        """Return the layout with a further column in the last line, or in a line below."""
        lines = [*self._lines, [column]] if below else [*self._lines[:-1], [*self._lines[-1], column]]
        return _Layout(lines, self._widths, self._width)

    def lines(self, row: Sequence[str]) -> list[str]:
        """Return the lines of a row. A line without text is left out."""
        return [line for number in range(len(self._lines)) for line in self._line(number, row)]

    def _line(self, number: int, row: Sequence[str]) -> list[str]:
        *before, last = self._lines[number]
        start = " " * _INDENT if number else ""
        start += "".join(_padded(row[column], self._widths[column]) + _GAP for column in before)
        has_text = start.strip() or row[last].strip()
        return _folded(row[last], self._width, start=start, hanging=text_width(start)) if has_text else []


def _layout(cells: Sequence[Sequence[str]], width: int | None) -> _Layout:
    """Return the layout of a table: free text is beside the other columns if this takes fewer lines."""
    widths = [max(map(text_width, column)) for column in zip(*cells, strict=True)]
    *others, free = range(len(widths))
    layout = _Layout([[]], widths, width)
    for at, column in enumerate(others):
        layout = layout.with_column(column, below=at > 0 and layout.room < widths[column])
    beside, below = (layout.with_column(free, below=choice) for choice in (False, True))
    if layout.room >= widths[free]:
        return beside
    heights = [sum(len(one.lines(row)) for row in cells) for one in (beside, below)]
    return beside if layout.room >= _LEAST_ROOM and heights[0] <= heights[1] else below


def text_width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - text_width(text))


def _folded(text: str, width: int | None, *, start: str = "", hanging: int = 0) -> list[str]:
    """Return text as lines: the first begins with ``start``, the others at the column ``hanging``.

    A word that is too long for a line begins further left; if it is longer than the terminal is wide, it is
    longer than its line.
    """
    text = _QUOTED.sub(lambda quoted: whole(quoted[0]), _printable(text))
    if width is None or text_width(start + text) <= width:
        return [start + text]
    lines, line, has_word = [], start, False
    for word in filter(None, text.split(" ")):
        gap = " " if has_word else ""
        if text_width(line + gap + word) > width:
            if line.strip():
                lines.append(line)
                line = " " * hanging
            line, gap = line[: max(0, width - text_width(word))], ""
        line += gap + word
        has_word = True
    return [*lines, line]


def _printable(text: str) -> str:
    return _JOINED.join(map(printable, text.split(_JOINED)))


def _print(lines: Iterable[str], *, bold: bool = False) -> None:
    bold = bold and os.environ.get("TERM", "dumb") != "dumb"
    for line in lines:
        plain = line.replace(_JOINED, " ").rstrip()
        sys.stdout.write(f"{_BOLD}{plain}{_NOT_BOLD}\n" if bold else f"{plain}\n")
