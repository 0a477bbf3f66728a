"""The entries of ``persist`` as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from vfiotool.pci.ids import ids_text
from vfiotool.render.terminal import literal, show


def print_entries(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print for each entry the device's path, ids, driver and owner, and its present address and driver."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("PATH", "ID", "DRIVER", "OWNER", "NOW AT", "NOW ON"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        ids = ids_text(entry["vendor_id"], entry["device_id"])
        now = (entry["present_at"] or "-", entry["bound_to"] or "-")
        table.add_row(*map(literal, (entry["path"], ids, entry["driver"], _owner(entry["owner"]), *now)))
    show(table)


def _owner(owner: Mapping[str, int | None] | None) -> str:
    if owner is None:
        return "root"
    return str(owner["uid"]) if owner["gid"] is None else f"{owner['uid']}:{owner['gid']}"
