"""Configuration space as the kernel shows it in sysfs, of a device on any driver or none."""

from __future__ import annotations

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree


def read_config(tree: Tree, address: str) -> bytes | None:
    """Return as much of configuration space as this user may read: 256 or 4096 bytes as root, 64 else.

    ``None`` where it cannot be read, or not in time: while the device is reset, the kernel lets nobody in.
    A device that sleeps is woken for it.

    Source: pci_read_config() in drivers/pci/pci-sysfs.c.
    """
    path = f"{device_path(address)}/config"
    answer = bounded_reads.read_all(tree, [path])[path]
    return answer if isinstance(answer, bytes) else None
