"""The schema of a trace. Each field is checked: a trace can come from an untrusted source."""

from __future__ import annotations

import json
import math
import sys
from typing import Any, NoReturn

from vfiotool.pci.address import is_full_address

SCHEMA = "vfiotool.trace/1"
_INTEGERS = range(-(1 << 63), 1 << 64)
_NEEDED = ("at", "us", "unit", "workload", "cycle", "operation", "arguments", "expected", "got")
_OPTIONAL = ("unexpected", "released")


class BadLineError(ValueError):
    """A line that does not follow the schema."""


def _no_constant(name: str) -> NoReturn:
    raise BadLineError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


class Fields:
    """The fields of a line. Each access checks the field."""

    def __init__(self, document: Any) -> None:
        if not isinstance(document, dict):
            raise BadLineError("the line is not an object")
        for name in _NEEDED:
            if name not in document:
                raise BadLineError(f"{name} is missing")
        for name in document.keys() - {*_NEEDED, *_OPTIONAL}:
            raise BadLineError(f"{clean(name)[:40]!r} is not a field of a trace")
        self._document = document

    def text(self, name: str) -> str:
        return _text(name, self._document[name])

    def natural(self, name: str) -> int:
        value = _integer(name, self._document[name])
        if value < 0:
            raise BadLineError(f"{name} is below 0")
        return value

    def number(self, name: str) -> float:
        value = self._document[name]
        if type(value) not in (int, float) or not math.isfinite(_as_float(value)) or value < 0:
            raise BadLineError(f"{name} is not a number of 0 or more")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._document.get(name, False)
        if not isinstance(value, bool):
            raise BadLineError(f"{name} is neither true nor false")
        return value


def parse(raw: bytes) -> Any:
    """Return the JSON value of a line. Raise ValueError for invalid JSON and for JSON nested too deeply."""
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except RecursionError:
        raise BadLineError("the line is nested too deeply") from None


def check_header(header: Any) -> dict[str, Any]:
    """Return the header of a trace; raise BadLineError if a field is wrong."""
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise BadLineError(f"the line is not the header of a trace with the schema {SCHEMA}")
    for name in ("kernel", "era", "started"):
        _text(name, header.get(name))
    _integer("seed", header.get("seed"))
    for name in ("devices", "workloads"):
        for item in _items(name, header.get(name)):
            _text(name, item)
    if not _items("units", header.get("units")):
        raise BadLineError("the header has no unit")
    for unit in header["units"]:
        _check_unit(unit)
    return header


def _check_unit(unit: Any) -> None:
    if not isinstance(unit, dict):
        raise BadLineError("a unit is not an object")
    _integer("group", unit.get("group", 0))
    members, hosts = _items("members", unit.get("members")), unit.get("hosts")
    if not isinstance(hosts, dict):
        raise BadLineError("hosts is not an object")
    for address in (*members, *hosts):
        if not is_full_address(_text("address", address)):
            raise BadLineError(f"{address[:40]!r} is not a full PCI address")
    for driver in hosts.values():
        if not _is_driver(_text("driver", driver)):
            raise BadLineError(f"{driver[:40]!r} is not a driver's name")


def _is_driver(name: str) -> bool:
    """Return True if a driver's folder can have this name, or the name is empty: no driver."""
    return "/" not in name and name.isprintable() and name not in (".", "..")


def _items(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadLineError(f"{name} is not a list")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadLineError(f"{name} is not a string")
    return clean(value)


def clean(text: str) -> str:
    """Return the interned text. Raise BadLineError for half a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadLineError("a string has half a surrogate pair") from None
    return sys.intern(text)


def _integer(name: str, value: Any) -> int:
    if type(value) is not int or value not in _INTEGERS:
        raise BadLineError(f"{name} is not an integer of 64 bits")
    return value


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_argument(name: str, value: Any) -> int | str:
    return _text(name, value) if isinstance(value, str) else _integer(f"argument {name[:40]!r}", value)
