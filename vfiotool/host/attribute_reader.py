"""Reads the attributes of one device in sysfs, and notes what cannot be read.

A listing imports this module, so it has no dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping

from vfiotool.host.bounded_reads import ReadResult
from vfiotool.host.tree import Tree, decode
from vfiotool.pci.address import HEX_DIGITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_DIGITS = 10  # the kernel's decimal attributes are of type int
_REPLACED = "\ufffd"


class AttributeReader:
    """The attributes of a device. ``unavailable`` has the fields that could not be read, in that order.

    Content that the kernel would not write, such as a number in another base, counts as not readable.
    """

    def __init__(self, tree: Tree, folder: str) -> None:
        self._tree, self._folder = tree, folder
        self._guarded: Mapping[str, ReadResult] = {}
        self.unavailable: list[str] = []
        try:
            self.present = frozenset(tree.names(folder))
            self.is_listed = True
        except OSError:
            self.present = frozenset()
            self.is_listed = False

    def path(self, name: str) -> str:
        """Return the path of an attribute."""
        return f"{self._folder}/{name}"

    def use(self, guarded: Mapping[str, ReadResult]) -> None:
        """Take the content of attributes whose read can block, by path."""
        self._guarded = guarded

    def lacks(self, *names: str) -> bool:
        """Return True if the device has none of these attributes: none is there, and none is out of sight."""
        return self.is_listed and self._tree.is_complete and self.present.isdisjoint(names)

    def text(self, name: str) -> str | None:
        """Return the text of an attribute; ``None`` if it is missing, unreadable or no line of text."""
        text = self._text(name)
        return text if text and text.isprintable() and _REPLACED not in text else None

    def words(self, name: str) -> tuple[str, ...] | None:
        """Return the words of an attribute, which may have none; ``None`` as for ``text``."""
        text = self._text(name)
        return () if text == "" else None if (line := self.text(name)) is None else tuple(line.split())

    def hexadecimal(self, name: str, digits: int) -> int | None:
        """Return the number in an attribute, at most that many digits after ``0x``, or ``None``."""
        return to_hexadecimal(self._text(name), digits)

    def decimal(self, name: str) -> int | None:
        """Return the decimal number in an attribute; ``None`` as for ``text``."""
        return to_decimal(self._text(name))

    def link(self, name: str, field: str) -> str | None:
        """Return the last part of a link's target, or ``None`` if the device has no such link.

        Notes the ``field`` if it cannot be known.
        """
        target = None
        is_known = self.is_listed
        if name in self.present:
            try:
                target = self._tree.find_link(self.path(name))
                # A copy may have a folder in place of the link.
                is_known = bool(target) or not self._tree.exists(self.path(name))
            except OSError:
                is_known = False
        if not is_known:
            self.note(field)
        return target or None

    def names(self, name: str) -> list[str] | None:
        """Return the names in a folder of the device, none if there is no folder; ``None`` if unknown."""
        if name not in self.present:
            return [] if self.is_listed else None
        try:
            return self._tree.find_names(self.path(name))
        except OSError:
            return None

    def content(self, name: str) -> bytes | None:
        """Return the content of an attribute, or ``None`` if it is missing or cannot be read."""
        if name.partition("/")[0] not in self.present:
            return None
        try:
            return self._read(name)
        except OSError:
            return None

    def known(self, field: str, value: Any) -> Any:
        """Return the value of a field; note the field if the value is ``None``."""
        if value is None:
            self.note(field)
        return value

    def note(self, field: str) -> None:
        """Note that a field cannot be known."""
        if field not in self.unavailable:
            self.unavailable.append(field)

    def _text(self, name: str) -> str | None:
        content = self.content(name)
        return None if content is None else decode(content)

    def _read(self, name: str) -> bytes | None:
        path = self.path(name)
        if path not in self._guarded:
            return self._tree.read_bytes(path)
        answer = self._guarded[path]
        return None if isinstance(answer, OSError) else answer


def to_hexadecimal(text: str | None, digits: int) -> int | None:
    """Return the number in a text such as ``0x8086``, or ``None`` if it is another text."""
    number = (text or "")[2:]
    is_number = text == f"0x{number}" and 0 < len(number) <= digits and HEX_DIGITS.issuperset(number)
    return int(number, 16) if is_number else None


def to_decimal(text: str | None) -> int | None:
    """Return the number in a text such as ``-1``, or ``None`` if it is another text."""
    digits = (text or "").removeprefix("-")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= _MOST_DIGITS
    return int(text or "") if is_number else None
