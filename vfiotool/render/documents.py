"""The JSON documents of the command line (docs/command-line.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def to_json(value: Any) -> Any:
    """Convert dataclasses, mappings and sequences to the types that ``json`` can write, recursively."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}


def write_document(verb: str, fields: Any) -> None:
    """Write a mapping or a dataclass as a JSON document to stdout: one line, with ``schema`` first."""
    document = {"schema": f"vfiotool.{verb}/1"} | to_json(fields)
    sys.stdout.write(json.dumps(document) + "\n")
