"""Configuration space as sysfs shows it, for a device on any driver or on none."""

from __future__ import annotations

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree


def read_config(tree: Tree, address: str) -> bytes | None:
    """Return the part of configuration space that this user may read: 256 or 4096 bytes as root, else 64.

    ``None`` if the read fails or does not return in time: the kernel blocks reads while it resets the
    device. The kernel wakes a suspended device for the read.

    Source: pci_read_config() in drivers/pci/pci-sysfs.c.
    """
    path = f"{device_path(address)}/config"
    answer = bounded_reads.read_all(tree, [path])[path]
    return answer if isinstance(answer, bytes) else None
