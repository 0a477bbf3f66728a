"""The addresses on the bus that reach a device, and never memory."""

from __future__ import annotations

from vfiotool.host.attributes import GROUPS, find_group
from vfiotool.host.bars import read_bars
from vfiotool.host.tree import Tree
from vfiotool.vfio.info import IovaRange


def bus_ranges(tree: Tree, address: str) -> tuple[IovaRange, ...]:
    """Return the memory BARs of a device and of the other devices in its IOMMU group.

    A device's access to these addresses need not come to the IOMMU: the device may take its own BAR for a
    local access and refuse it, as QEMU's NVMe controller does, and a switch or port without ACS passes it to
    the other device. So an IOVA there does not lead to the memory that is mapped at it.
    """
    number = find_group(tree, address)
    members = [address] if number is None else tree.find_names(f"{GROUPS}/{number}/devices")
    return tuple(
        IovaRange(bar.start, bar.start + bar.size - 1)
        for member in members
        for bar in read_bars(tree, member)
        if bar.type != "io" and bar.size > 0
    )
