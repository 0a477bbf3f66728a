"""Open a device that is on vfio-pci, and map memory for its DMA: what `scripts/demo` shows."""

from __future__ import annotations

import mmap
import os
import sys

from vfiotool.vfio import Group, GroupDevice

SIZE = 1 << 20
IOVA = 0x10000


def main(address: str) -> None:
    """Show the life of a group: closed, in a container, with a device and a mapping, closed again."""
    group_id = int(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group").rpartition("/")[2])
    with Group(group_id) as group:
        print(f"group {group_id} opened:      {group.status()!r}")
    with GroupDevice(address, group_id) as opened, mmap.mmap(-1, SIZE) as memory:
        print(f"in a container:      {opened.group.status()!r}, IOMMU {opened.iommu.name}")
        info = opened.device.info()
        print(f"device {address}: {info.num_regions} regions, {info.num_irqs} interrupt types")
        opened.container.map_dma(memory, IOVA, SIZE)
        print(f"mapped:              {SIZE:#x} bytes at IOVA {IOVA:#x}")
        print(f"unmapped:            {opened.container.unmap_dma(IOVA, SIZE):#x} bytes")
    print("closed:              device, group and container")


if __name__ == "__main__":
    main(sys.argv[1])
