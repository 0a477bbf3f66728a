"""The public API, re-exported; a name's module is imported when the name is first used.

Importing all of it costs several times what Python's own start does, and the command line must
start fast.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in typing, whose import costs a quarter of Python's own start
if TYPE_CHECKING:
    from vfiotool.binding.operations import Binding as Binding
    from vfiotool.binding.operations import bound as bound
    from vfiotool.host.snapshot import snapshot as snapshot

_HOMES = {
    "Binding": "vfiotool.binding.operations",
    "bound": "vfiotool.binding.operations",
    "snapshot": "vfiotool.host.snapshot",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
