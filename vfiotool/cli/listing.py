"""The listing of devices as JSON. Imports neither click nor dataclasses: see ``vfiotool.cli``."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.host.attributes import addresses, read_fields
from vfiotool.host.pending import STATE_DIR
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.render.documents import write_document


def write_listing(
    tree: Tree | None = None, wanted: Iterable[str] | None = None, *, state_dir: str = STATE_DIR
) -> None:
    """Write the document of ``list``: of the devices at these addresses, or of all."""
    tree = tree or Tree()
    chosen = addresses(tree) if wanted is None else wanted
    fields = read_fields(tree, chosen, PciNames.of_this_machine(), state_dir=state_dir)
    write_document("list", {"devices": fields})
