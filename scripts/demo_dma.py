"""Drive edu, QEMU's educational device: the DMA part of `scripts/demo`."""

from __future__ import annotations

import os
import sys

from vfiotool import Register, RegisterBlock, bit, open_device
from vfiotool.vfio import Group

IN_DEVICE = 0x40000


class Edu(RegisterBlock, width=32):
    """BAR0 (QEMU docs/specs/edu)."""

    ident = Register(0x00, access="ro")
    irq_status = Register(0x24, access="ro")
    irq_ack = Register(0x64, access="wo")
    dma_src = Register(0x80, width=64)
    dma_dst = Register(0x88, width=64)
    dma_count = Register(0x90, width=64)
    dma_cmd = Register(0x98, width=64, fields={"start": bit(0), "to_ram": bit(1), "irq": bit(2)})


def main(address: str) -> None:
    """Show the status of a group, then DMA in both directions; an interrupt ends each transfer."""
    group_id = int(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group").rpartition("/")[2])
    with Group(group_id) as group:
        print(f"group {group_id}:            {group.status()!r}")
    with (
        open_device(address) as device,
        device.regions.bar0.map() as bar0,
        device.dma.alloc(4096, iova_max=(1 << 28) - 1) as buffer,
        device.irqs.msi.enable() as (vector,),
    ):
        device.bus_master = True
        regs = Edu(bar0)
        print(f"device {address}: IOMMU mode {device.dma.iommu.mode.value}, ident {regs.ident.read():#x}")
        print(f"mapped:              {buffer.size:#x} bytes at IOVA {buffer.iova:#x}")
        buffer[:4] = b"ping"
        for source, target, to_ram in ((buffer.iova, IN_DEVICE, 0), (IN_DEVICE, buffer.iova + 100, 1)):
            regs.dma_src.write(source)
            regs.dma_dst.write(target)
            regs.dma_count.write(4)
            regs.dma_cmd.write(start=1, to_ram=to_ram, irq=1)
            print(f"interrupts:          {vector.wait(timeout=30)}")
            regs.irq_ack.write(regs.irq_status.read())
        print(f"through the device:  {buffer[100:104]!r}")
    print("closed:              device, group and container")


if __name__ == "__main__":
    main(sys.argv[1])
