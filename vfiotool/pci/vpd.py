"""Vital Product Data, parsed from the bytes of the sysfs file ``vpd``: what a board is called and numbered.

The device is not trusted: each length is checked, and the parser stops at the first part that makes no sense.

Source: PCI Local Bus 3.0 appendix I; the keywords CC, FC, FN, NA, RM and Z are those of POWER machines.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SIZE = 1 << 15
"""The bytes that the capability can address."""

_LARGE = 0x80
_PRODUCT_NAME, _READ_ONLY, _READ_WRITE, _END = 0x82, 0x90, 0x91, 0x0F
_FIELD_HEADER = 3
_CHECKSUM, _FREE = "RV", "RW"
_NAMES = {
    "CC": "CCIN",
    "CP": "extended capability",
    "EC": "engineering changes",
    "FC": "feature code",
    "FG": "fabric geography",
    "FN": "FRU",
    "LC": "location",
    "MN": "manufacture id",
    "NA": "network address",
    "PG": "PCI geography",
    "PN": "part number",
    "RM": "firmware version",
    "SN": "serial number",
    "YA": "asset tag",
}
_BINARY = ("CP",)
_GROUPS = {"V": "vendor specific", "Y": "system specific", "Z": "product specific"}


@dataclass(frozen=True, slots=True)
class VpdField:
    """A field: its keyword of two letters, what the keyword means, and its value.

    The value is a text, or hexadecimal in a field whose keyword is unknown or means a number.
    """

    keyword: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Vpd:
    """Vital Product Data: ``checksum_ok`` is ``None`` if there is no checksum.

    ``complete`` is False if the data end without an end tag, or with a part that makes no sense.
    ``reserved_bytes`` and ``free_bytes`` are the room after the checksum, and of the writable part.
    """

    product_name: str | None
    read_only: tuple[VpdField, ...]
    read_write: tuple[VpdField, ...]
    checksum_ok: bool | None
    complete: bool
    reserved_bytes: int | None
    free_bytes: int | None


class _Parser:
    def __init__(self, data: bytes) -> None:
        self.data = data[:MAX_SIZE]
        self.product_name: str | None = None
        self.fields: dict[int, list[VpdField]] = {_READ_ONLY: [], _READ_WRITE: []}
        self.checksum_ok: bool | None = None
        self.reserved_bytes: int | None = None
        self.free_bytes: int | None = None

    def parse(self) -> bool:
        """Parse all resources; return True if the end tag was found."""
        at = 0
        while at < len(self.data):
            tag = self.data[at]
            if tag & _LARGE:
                size, start = int.from_bytes(self.data[at + 1 : at + 3], "little"), at + 3
            else:
                tag, size, start = tag >> 3, tag & 7, at + 1
            at = start + size
            if tag == _END:
                return True
            if at > len(self.data):
                return False
            if tag == _PRODUCT_NAME:
                self.product_name = _text(self.data[start:at])
            elif tag not in self.fields or not self._parse_fields(self.fields[tag], start, at):
                return False
        return False

    def _parse_fields(self, fields: list[VpdField], start: int, end: int) -> bool:
        """Parse the fields of a resource; return True if they fill it."""
        while start + _FIELD_HEADER <= end:
            keyword = _text(self.data[start : start + 2])
            value_at = start + _FIELD_HEADER
            start = value_at + self.data[value_at - 1]
            if start > end:
                return False
            self._add(fields, keyword, value_at, start)
        return True

    def _add(self, fields: list[VpdField], keyword: str, start: int, end: int) -> None:
        if keyword == _CHECKSUM:
            if end > start:
                self.checksum_ok = sum(self.data[: start + 1]) % 256 == 0
                self.reserved_bytes = end - start - 1
        elif keyword == _FREE:
            self.free_bytes = end - start
        else:
            fields.append(_field(keyword, self.data[start:end]))


def parse_vpd(data: bytes) -> Vpd:
    """Return what Vital Product Data say; bytes that are none give no fields, and ``complete`` is False."""
    parser = _Parser(data)
    complete = parser.parse()
    return Vpd(
        product_name=parser.product_name,
        read_only=tuple(parser.fields[_READ_ONLY]),
        read_write=tuple(parser.fields[_READ_WRITE]),
        checksum_ok=parser.checksum_ok,
        complete=complete,
        reserved_bytes=parser.reserved_bytes,
        free_bytes=parser.free_bytes,
    )


def _field(keyword: str, value: bytes) -> VpdField:
    name = _NAMES.get(keyword) or _GROUPS.get(keyword[0])
    if name is None or keyword in _BINARY:
        return VpdField(keyword, name or "unknown", value.hex(" "))
    return VpdField(keyword, name, _text(value))


def _text(value: bytes) -> str:
    """Return a text; a byte that is no ASCII is written as ``\\xNN``."""
    return value.decode("ascii", "backslashreplace")
