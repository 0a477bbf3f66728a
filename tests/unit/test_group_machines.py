"""Groups of real machines, whose folders are in tests/data/machines: what vfiotool says of them."""

from __future__ import annotations

from pathlib import Path

from vfiotool.host.attributes import addresses
from vfiotool.host.devices import read_devices
from vfiotool.host.groups import IommuGroup, group_ids, read_groups
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames

MACHINES = Path(__file__).parents[1] / "data" / "machines"
VMD = "0000:00:0e.0"
DOMAIN = ["10000:e0:06.0", "10000:e0:1b.0", "10000:e0:1b.4", "10000:e1:00.0", "10000:e2:00.0"]


def machine(name: str) -> Tree:
    return Tree(str(MACHINES / name))


def groups(tree: Tree) -> dict[int, IommuGroup]:
    devices = read_devices(tree, addresses(tree), PciNames(b""))
    return {group.id: group for group in read_groups(tree, group_ids(tree), devices)}


def test_a_vmd_issues_the_dma_of_its_domain() -> None:
    (group,) = groups(machine("vmd")).values()
    assert group.devices == (VMD, *DOMAIN)
    assert group.why == (
        f"{', '.join(DOMAIN)}: in PCI domain 10000, which {VMD} (vmd) makes and whose DMA it issues "
        "under its own requester id",
    )
