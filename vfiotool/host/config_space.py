"""Configuration space as sysfs shows it, for a device on any driver or on none."""

from __future__ import annotations

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree
from vfiotool.pci.config_space import HEADER_SIZE, STANDARD_SIZE, has_capabilities
from vfiotool.pci.identity import is_silent


def read_config(tree: Tree, address: str) -> bytes:
    """Return the part of configuration space that this user may read: 256 or 4096 bytes as root, else 64.

    Empty if the read fails or does not return in time: the kernel blocks reads while it resets the device.
    The kernel wakes a suspended device for the read.

    Source: pci_read_config() in drivers/pci/pci-sysfs.c.
    """
    path = f"{device_path(address)}/config"
    return shown_part(bounded_reads.read_all(tree, [path])[path])


def shown_part(content: bounded_reads.ReadResult) -> bytes:
    """Return the part of configuration space that the kernel showed to who read ``config``.

    A tar that a user without root makes has more: tar fills the file up with zeros, to the size that sysfs
    gives it. Such a device has capabilities by its status, and zeros where the first of them is.
    """
    if not isinstance(content, bytes):
        return b""
    is_filled = not any(content[HEADER_SIZE:]) and has_capabilities(content)
    return content[:HEADER_SIZE] if is_filled else content


def is_whole(config: bytes) -> bool:
    """Return True if the device answers and its capabilities are in sight, which takes root."""
    return len(config) >= STANDARD_SIZE and not is_silent(config)
