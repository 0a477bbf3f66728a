"""The fields of JSON documents, to compare the documents of two versions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_MAPS = re.compile(r"(^|\.)(operations|errors|probes|fds|arguments|hosts)$")
"""Objects whose keys are data: operations, errnos, functions, processes."""


def fields(document: Any) -> list[str]:
    """Return the paths of all fields, sorted: ``devices[].address``, ``operations.*.count``."""
    return sorted(set(_paths(document, "")))


def _paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            name = "*" if _MAPS.search(path) else key
            yield from _paths(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for item in value:
            yield from _paths(item, f"{path}[]")
    else:
        yield path
