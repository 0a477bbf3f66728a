"""All devices and groups of a machine at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.host import pending_unbinds
from vfiotool.host.attributes import addresses
from vfiotool.host.devices import PciDevice, read_devices
from vfiotool.host.groups import IommuGroup, group_ids, read_groups
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All PCI devices, sorted by address, and all IOMMU groups, sorted by number."""

    devices: tuple[PciDevice, ...]
    groups: tuple[IommuGroup, ...]


def snapshot(tree: Tree | None = None, *, state_dir: str = pending_unbinds.STATE_DIR) -> Snapshot:
    """Read all devices and groups of this machine, or of the machine that ``tree`` shows.

    A device or group that disappears meanwhile is left out. No read blocks: see ``bounded_reads``.
    """
    tree = tree or Tree()
    devices = read_devices(tree, addresses(tree), PciNames.of_this_machine(), state_dir=state_dir)
    return Snapshot(tuple(devices), tuple(read_groups(tree, group_ids(tree), devices)))
