"""Compares the fields that lspci prints with the document of ``vfiotool config --json``.

A table is text, for a header or a kind of capability. A line without indentation is a label of lspci, and
a line with two spaces a label below it. Items that may follow a label are indented by four spaces, and are
separated by two spaces or by line ends. An item is the text of lspci, with the path of a field of the
document in the place of a value:

    MaxPayload {device.max_payload} bytes  ExtTag{device.extended_tags+}

``{path}`` is a decimal number, ``{path#}`` a hexadecimal one, ``{path+}`` a sign, ``{path=NAME}`` a sign that
tells whether a list of names has NAME, ``{path:reader}`` a value that a reader of ``READERS`` understands,
``{name@}`` a number (``{name@#}`` a hexadecimal one) that later paths refer to as ``$name``, ``{*}`` any text
that the document has elsewhere. ``$index`` is how often the label was there before. A path is names and
``[...]``: ``[2]`` is an index, ``[$n-1]`` a number less one, ``[bar=$n]`` the first with that field.

An item after ``-`` is left out of the comparison, for the reason after ``--``; there ``{}`` is any number,
``{#}`` a hexadecimal one, ``{+}`` a sign, ``{*}`` any text without brackets, ``{...}`` a text of any kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.lspci_readers import READERS, Reader, has_name, hexadecimal, number, sign

_PLACE = re.compile(r"\{([^}]*)\}")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
_VARIABLE = re.compile(r"\$([a-z]+)(-1)?")
_END = r"(?=[ ,;]|$)"
_SEPARATORS = " ,;"
_ITEM_DEPTH = 4
_MOST_REPORTED = 20
_ANY = {"": r"-?\d+", "#": "[0-9a-f]+", "+": "[+-]", "*": r"[^()\[\]]+?", "...": ".+?"}

NOTHING = object()
"""The value of a field that a document does not have."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a value in an item: the field of the document, and what compares it with lspci's text.

    ``variable`` is the name under which paths refer to the text, for a place without a field.
    """

    path: str
    reader: Reader | None
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """An item or a label of lspci; ``reason`` says why it is left out of the comparison, if it is."""

    text: str
    pattern: re.Pattern[str]
    places: tuple[Place, ...]
    reason: str = ""

    def match(self, text: str, at: int) -> re.Match[str] | None:
        """Return the match of the item in a text at a place."""
        # Most items begin with another letter, and a look at it is faster than the pattern.
        return self.pattern.match(text, at) if self.text[0] in ("{", text[at]) else None

    @property
    def is_compared(self) -> bool:
        """Return True if a value of lspci is compared with a field of the document."""
        return any(place.reader is not None for place in self.places)


@dataclass(frozen=True, slots=True)
class Match:
    """An item in lspci's text: ``groups`` are the texts of its places, ``variables`` what has a name."""

    label: str
    item: Item
    text: str
    groups: tuple[str, ...]
    variables: Mapping[str, str]


class Node:
    """What may follow a label: items, and further labels."""

    def __init__(self, label: Item | None, parent: Node | None) -> None:
        self.label = label
        self.parent = parent
        self.items: list[Item] = []
        self.labels: list[Node] = []
        above = "" if parent is None else parent.path
        self.path: str = " ".join(filter(None, (above, "" if label is None else label.text)))

    def walk(self) -> Iterator[Node]:
        """Yield the node and all below it."""
        yield self
        for one in self.labels:
            yield from one.walk()


class Table:
    """The items of a header or of a kind of capability, below their labels; the first have no label."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.root = Node(None, None)
        node = self.root
        for line in filter(str.strip, text.splitlines()):
            depth = len(line) - len(line.lstrip())
            if depth >= _ITEM_DEPTH:
                node.items += _items(line.strip())
                continue
            parent = self.root if depth == 0 else self.root.labels[-1]
            node = Node(_item(line.strip()), parent)
            parent.labels.append(node)

    def items(self) -> Iterator[tuple[str, Item]]:
        """Yield all labels and items, with the label above."""
        for node in self.root.walk():
            yield from ((node.path, one) for one in node.items)
            yield from ((node.path, one.label) for one in node.labels if one.label is not None)

    def left_out(self) -> Iterator[str]:
        """Yield what is left out of the comparison, and why."""
        yield from (
            f"{self.name}: {label} {one.text}: {one.reason}" for label, one in self.items() if one.reason
        )

    def scan(self, text: str) -> Iterator[Match | str]:
        """Yield the items in lspci's text, and each text between them that is no item."""
        node, at, stray = self.root, 0, ""
        variables: dict[str, str] = {}
        seen: Counter[str] = Counter()
        while at < len(text):
            if text[at] in _SEPARATORS:
                at += 1
                continue
            found = _match(node, text, at)
            if found is None:
                end = text.find(" ", at)
                end = len(text) if end < 0 else end
                stray, at = f"{stray} {text[at:end]}".strip(), end
                continue
            if stray:
                yield f"{node.path} {stray}".strip()
                stray = ""
            next_node, item, match = found
            if item is next_node.label:
                variables = variables | {"index": str(seen[next_node.path])}
                seen[next_node.path] += 1
            for place, group in zip(item.places, match.groups(), strict=True):
                if place.variable:
                    variables = variables | {place.variable: group}
            above = next_node.parent if item is next_node.label and next_node.parent is not None else node
            yield Match(above.path, item, match[0], match.groups(), variables)
            node, at = next_node, match.end()
        if stray:
            yield f"{node.path} {stray}".strip()


def _match(node: Node, text: str, at: int) -> tuple[Node, Item, re.Match[str]] | None:
    """Return the label that starts here, an inner one first, or the longest item; and the node to go to."""
    level: Node | None = node
    while level is not None:
        for one in level.labels:
            if one.label is not None and (found := one.label.match(text, at)):
                return one, one.label, found
        level = level.parent
    matches = [(one, found) for one in node.items if (found := one.match(text, at))]
    if not matches:
        return None
    return node, *max(matches, key=lambda pair: pair[1].end())


class Comparison:
    """Gathers what differs: sentences in ``problems``, and in ``compared`` the items that were compared."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.compared: set[tuple[str, str, str]] = set()

    def report(self) -> str:
        """Return the problems, a line for each of the first."""
        return "\n".join([*self.problems[:_MOST_REPORTED], f"{len(self.problems)} problems"])

    def compare(self, where: str, table: Table, text: str, fields: Any) -> None:
        """Compare the text of a header or a capability with the fields of a document."""
        for found in table.scan(text):
            if isinstance(found, str):
                self.problems.append(f"{where}: lspci prints '{found}': the table does not have it")
                continue
            self.compared.add((table.name, found.label, found.item.text))
            if not found.item.reason:
                self._compare(where, found, fields)

    def _compare(self, where: str, found: Match, fields: Any) -> None:
        for place, text in zip(found.item.places, found.groups, strict=True):
            if place.reader is None:
                continue
            path = _VARIABLE.sub(
                lambda name: str(int(found.variables[name[1]]) - len(name[2] or "") // 2), place.path
            )
            value = look_up(fields, path)
            said = f"{where}: lspci prints '{found.label} {found.text}'"
            if value is NOTHING:
                self.problems.append(f"{said}: vfiotool has no field {path}")
            elif not place.reader.agrees(text, value):
                self.problems.append(f"{said}: vfiotool has {path} = {value!r}")


def flags(path: str, names: Mapping[str, str] | Sequence[str]) -> str:
    """Return the items of signs: a sign's name in lspci, and its name in the list at ``path``."""
    pairs = names.items() if isinstance(names, Mapping) else zip(names, names, strict=True)
    return "  ".join(f"{shown}{{{path}={name}}}" for shown, name in pairs)


def look_up(fields: Any, path: str) -> Any:
    """Return the value at a path, or ``NOTHING``."""
    for name, index in _STEP.findall(path):
        try:
            if name:
                fields = fields[name]
            elif "=" in index:
                key, _, wanted = index.partition("=")
                fields = next(one for one in fields if str(one[key]) == wanted)
            else:
                fields = fields[int(index)]
        except (KeyError, TypeError, IndexError, StopIteration):
            return NOTHING
    return fields


def _items(line: str) -> Sequence[Item]:
    if line.startswith("- "):
        text, _, reason = line[2:].partition(" -- ")
        assert reason, line
        return [_item(text.strip(), reason)]
    return [_item(text) for text in re.split(r" {2,}", line)]


def _item(text: str, reason: str = "") -> Item:
    pattern, places, at = "", [], 0
    for place in _PLACE.finditer(text):
        pattern += re.escape(text[at : place.start()])
        form, read = _place(place[1], left_out=bool(reason))
        pattern += f"({form})"
        places.append(read)
        at = place.end()
    pattern += re.escape(text[at:])
    return Item(text, re.compile(pattern + _END), tuple(places), reason)


def _place(text: str, *, left_out: bool) -> tuple[str, Place]:
    """Return the pattern of a value, and its place."""
    if left_out:
        return _ANY[text], Place("", None)
    if text == "*":
        return _ANY[text], Place("", None)
    if text.endswith("@"):
        return r"\d+", Place("", None, text[:-1])
    if text.endswith("@#"):
        return "[0-9a-f]+", Place("", None, text[:-2])
    if equals := re.fullmatch(r"(.+)=([^=\]]+)", text):
        reader, path = has_name(equals[2]), equals[1]
    elif text.endswith("+"):
        reader, path = sign, text[:-1]
    elif text.endswith("#"):
        reader, path = hexadecimal, text[:-1]
    elif ":" in text:
        path, _, name = text.partition(":")
        reader = READERS[name]
    else:
        reader, path = number, text
    return reader.pattern, Place(path, reader)
