"""A report page as a browser reads it."""

from __future__ import annotations

from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from vfiotool.render.report_page import write_page


class Page(HTMLParser):
    """A page as a browser reads it: its elements, their attributes, and all text.

    ``structure`` has all in their order, without white space that a browser does not show, nor style.
    """

    VOID = ("meta",)

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.structure: list[tuple[str, object]] = []
        self._open: list[str] = []
        self.feed(self.raw)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.structure.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.structure.append(("end", tag))

    def handle_data(self, data: str) -> None:
        self.text += data
        shown = data if "pre" in self._open else " ".join(data.split())
        if shown and "style" not in self._open:
            self.structure.append(("text", shown))

    def count(self, tag: str, class_: str) -> int:
        return sum(name == tag and found.get("class") == class_ for name, found in self.elements)


def page(path: Path, document: dict[str, Any], lines: Iterable[dict[str, Any]], *labels: str) -> Page:
    write_page(str(path / "report.html"), document, lines, labels)
    return Page(path / "report.html")
