"""The lab's machines: their virtual devices with addresses, and their virtual IOMMUs.

All machines have the same devices at the same addresses, except devices that an IOMMU does not support. This
module is pure data: QEMU's arguments for a machine, and the devices that the guest must see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vfiotool.errors import SelectorError

DRIVE_SIZE = 16 << 20
"""The size of each NVMe namespace in bytes; its content is in memory and is lost with the guest."""


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """A virtual device of the machines: its address, its ids, a description, and QEMU's ``-device`` for it.

    ``needs`` is a device model that not every QEMU has; without it, the device is left out. ``drive`` and
    ``netdev`` are the names of the backend that ``qemu`` refers to.
    """

    address: str
    ids: str
    what: str
    qemu: str
    more: tuple[str, ...] = ()
    drive: str = ""
    netdev: str = ""
    needs: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A named topology: ``qemu`` and ``cmdline`` are the arguments that create its IOMMU."""

    name: str
    what: str
    qemu: tuple[str, ...] = ()
    cmdline: str = ""
    module: str = ""  # the kernel must have this driver for the IOMMU
    without: tuple[str, ...] = ()  # addresses of devices that this IOMMU does not support

    def devices(self, models: frozenset[str]) -> tuple[VirtualDevice, ...]:
        """Return the devices that a guest sees, if QEMU has these device models."""
        return tuple(d for d in devices(models) if d.address not in self.without)

    def arguments(self, models: frozenset[str], drives: Mapping[str, str]) -> list[str]:
        """Return QEMU's arguments for the IOMMU and the devices; ``drives`` has the file of each drive."""
        arguments = list(self.qemu)
        for device in self.devices(models):
            if device.drive:
                arguments += ["-blockdev", blockdev(device.drive, drives[device.drive])]
            if device.netdev:
                arguments += ["-netdev", f"hubport,id={device.netdev},hubid=0"]
            for model in (device.qemu, *device.more):
                arguments += ["-device", model]
        return arguments


def blockdev(name: str, path: str) -> str:
    """Return QEMU's ``-blockdev`` argument for a raw drive in the file ``path``."""
    return f"driver=file,node-name={name},filename={path},locking=off"


# SR-IOV needs a subsystem, and queues (vq) and vectors (vi) reserved for the four VFs.
_SUBSYSTEM = "nvme-subsys,id=subsystem,nqn=vfiotool"
_PF = (
    "nvme,id=pf,bus=port2,addr=0,serial=lab1,subsys=subsystem,"
    "sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=26,msix_qsize=27"
)
_NIC = "romfile="  # no boot ROM: the firmware would run it, and some QEMU packages lack it

DEVICES = (
    VirtualDevice("00:02.0", "1b36:000c", "root port", "pcie-root-port,id=port2,addr=2,chassis=2,slot=2"),
    VirtualDevice("00:03.0", "1b36:000c", "root port", "pcie-root-port,id=port3,addr=3,chassis=3,slot=3"),
    VirtualDevice("00:04.0", "1b36:000c", "root port", "pcie-root-port,id=port4,addr=4,chassis=4,slot=4"),
    VirtualDevice("00:05.0", "1b36:000c", "root port", "pcie-root-port,id=port5,addr=5,chassis=5,slot=5"),
    VirtualDevice("00:10.0", "1234:11e8", "edu: DMA, MSI and a factorial", "edu,addr=10"),
    VirtualDevice("00:11.0", "1b36:0005", "pci-testdev", "pci-testdev,addr=11"),
    VirtualDevice("00:12.0", "8086:10d3", "e1000e", f"e1000e,addr=12,netdev=net0,{_NIC}", netdev="net0"),
    VirtualDevice("00:13.0", "1b36:0010", "nvme", "nvme,addr=13,serial=lab0,drive=drive0", drive="drive0"),
    VirtualDevice(
        "01:00.0",
        "1b36:0010",
        "nvme with up to 4 VFs, in a subsystem",
        _SUBSYSTEM,
        more=(_PF, "nvme-ns,bus=pf,drive=drive1,nsid=1"),
        drive="drive1",
    ),
    VirtualDevice("02:00.0", "1b36:000e", "PCIe-to-PCI bridge", "pcie-pci-bridge,id=pci3,bus=port3,addr=0"),
    VirtualDevice(
        "03:01.0",
        "8086:100e",
        "e1000, in a group with 03:02.0",
        f"e1000,bus=pci3,addr=1,netdev=net1,{_NIC}",
        netdev="net1",
    ),
    VirtualDevice(
        "03:02.0",
        "8086:100e",
        "e1000, in a group with 03:01.0",
        f"e1000,bus=pci3,addr=2,netdev=net2,{_NIC}",
        netdev="net2",
    ),
    VirtualDevice("04:00.0", "104c:8232", "switch, upstream port", "x3130-upstream,id=up,bus=port4,addr=0"),
    VirtualDevice(
        "05:00.0",
        "104c:8233",
        "switch, downstream port",
        "xio3130-downstream,id=down0,bus=up,addr=0,chassis=6,slot=6",
    ),
    VirtualDevice(
        "05:01.0",
        "104c:8233",
        "switch, downstream port",
        "xio3130-downstream,id=down1,bus=up,addr=1,chassis=7,slot=7",
    ),
    VirtualDevice(
        "06:00.0",
        "1b36:0010",
        "nvme, below the switch",
        "nvme,bus=down0,addr=0,serial=lab2,drive=drive2",
        drive="drive2",
    ),
    VirtualDevice(
        "07:00.0",
        "8086:10d3",
        "e1000e, below the switch",
        f"e1000e,bus=down1,addr=0,netdev=net3,{_NIC}",
        netdev="net3",
    ),
    VirtualDevice(
        "08:00.0",
        "8086:10c9",
        "igb with up to 7 VFs",
        f"igb,bus=port5,addr=0,netdev=net4,{_NIC}",
        netdev="net4",
        needs="igb",
    ),
)

MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "default",
            "Intel VT-d with interrupt remapping",
            ("-device", "intel-iommu,intremap=on,caching-mode=on"),
            "intel_iommu=on",
        ),
        Machine(
            "amd",
            "AMD-Vi (no 01:00.0, 06:00.0)",
            ("-device", "amd-iommu,intremap=on"),
            # QEMU 7.2's AMD IOMMU takes every bus for bus 0: behind a bridge no DMA arrives, and nvme hangs.
            without=("01:00.0", "06:00.0"),
        ),
        Machine(
            "virtio-iommu",
            "virtio-iommu (from Debian's 6.12; no 03:01.0, 03:02.0)",
            ("-device", "virtio-iommu-pci,addr=1e"),
            module="virtio_iommu",
            # QEMU 7.2's virtio-iommu lacks requester aliases: kernel 7 then gives no device a group.
            without=("03:01.0", "03:02.0"),
        ),
        Machine("none", "no IOMMU"),
    )
}


def devices(models: frozenset[str]) -> tuple[VirtualDevice, ...]:
    """Return the devices of a machine that supports all of them, if QEMU has these device models."""
    return tuple(device for device in DEVICES if not device.needs or device.needs in models)


def get(name: str) -> Machine:
    """Return the machine with this name; SelectorError if there is none."""
    try:
        return MACHINES[name]
    except KeyError:
        raise SelectorError(
            f"there is no machine named '{name}'", hint=f"choose from {', '.join(MACHINES)}"
        ) from None
