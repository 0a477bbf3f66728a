"""JSON documents of the command line's contract, from snapshots."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def to_json(value: Any) -> Any:
    """Turn frozen dataclasses and what they hold into what ``json`` can write, field by field."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}


def write_document(verb: str, fields: Any) -> None:
    """Write one document, from a mapping or a dataclass, to stdout in one line, its schema first."""
    document = {"schema": f"vfiotool.{verb}/1"} | to_json(fields)
    sys.stdout.write(json.dumps(document) + "\n")
