"""The Vital Product Data of a device, from sysfs."""

from __future__ import annotations

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree

_FILE = "vpd"


def has_vpd(tree: Tree, address: str) -> bool:
    """Return True if the kernel shows the data of a device: all of it to root, its existence to all."""
    return tree.exists(f"{device_path(address)}/{_FILE}")


def read_vpd(tree: Tree, address: str) -> bytes | None:
    """Return the data of a device, or ``None`` if they cannot be read, or not in time.

    The kernel reads them from the device, four bytes at a time, and waits for each: up to 125 ms of a device
    that does not answer. It ends at the end tag.

    Source: pci_vpd_read() in drivers/pci/vpd.c.
    """
    path = f"{device_path(address)}/{_FILE}"
    answer = bounded_reads.read_all(tree, [path])[path]
    return answer if isinstance(answer, bytes) and answer else None
