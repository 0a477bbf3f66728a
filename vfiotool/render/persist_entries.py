"""The entries of ``persist`` as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vfiotool.pci.ids import ids_text
from vfiotool.render.terminal import print_table


def print_entries(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print for each entry the device's path, ids, driver and owner, and its present address and driver."""
    rows = []
    for entry in entries:
        ids = ids_text(entry["vendor_id"], entry["device_id"])
        now = (entry["present_at"] or "-", entry["bound_to"] or "-")
        rows.append((entry["path"], ids, entry["driver"], _owner(entry["owner"]), *now))
    print_table(("PATH", "ID", "DRIVER", "OWNER", "NOW AT", "NOW ON"), rows)


def _owner(owner: Mapping[str, int | None] | None) -> str:
    if owner is None:
        return "root"
    return str(owner["uid"]) if owner["gid"] is None else f"{owner['uid']}:{owner['gid']}"
