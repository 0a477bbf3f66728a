"""The entries of ``persist`` as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from vfiotool.pci.ids import ids_text
from vfiotool.render.terminal import literal, show


def print_entries(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print for each entry the device's path, ids and driver at boot, and its present address and driver."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("PATH", "ID", "DRIVER", "NOW AT", "NOW ON"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        ids = ids_text(entry["vendor_id"], entry["device_id"])
        now = (entry["present_at"] or "-", entry["bound_to"] or "-")
        table.add_row(*map(literal, (entry["path"], ids, entry["driver"], *now)))
    show(table)
