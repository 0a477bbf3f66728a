"""The nodes below /dev that lead to VFIO and iommufd, and which of them is whose."""

from __future__ import annotations

import errno

from vfiotool._shim import lib
from vfiotool.errors import DeviceNotFoundError, UnsupportedError
from vfiotool.host.attributes import device_path, find_group
from vfiotool.host.groups import GROUPS
from vfiotool.host.tree import Tree
from vfiotool.vfio.handle import checked

CONTAINER = "/dev/vfio/vfio"
IOMMUFD = "/dev/iommu"
_NOIOMMU = "vfio-noiommu"  # the name that VFIO gives to the groups it makes up

_HINTS = {
    CONTAINER: "load it with 'modprobe vfio-pci'; a kernel without CONFIG_VFIO has none",
    IOMMUFD: "load it with 'modprobe iommufd'; a kernel without CONFIG_IOMMUFD (since 6.2) has none",
}


def open_node(path: str) -> int:
    """Open ``CONTAINER`` or ``IOMMUFD``, and return the file descriptor.

    Raises:
        UnsupportedError: this kernel has no such interface.
        KernelError: the node cannot be opened.
    """
    fd = lib.vt_open(path.encode())
    if fd in (-errno.ENOENT, -errno.ENODEV, -errno.ENXIO):
        raise UnsupportedError(f"this kernel has no VFIO: nothing answers at {path}", hint=_HINTS[path])
    return checked(fd, "open", path)


def group_of(address: str) -> int:
    """Return the number of a device's IOMMU group.

    Raises:
        DeviceNotFoundError: there is no such device.
        UnsupportedError: it has no group.
    """
    tree = Tree()
    number = find_group(tree, address)
    if number is None:
        if not tree.exists(device_path(address)):
            raise DeviceNotFoundError(
                f"there is no PCI device at {address}", hint="'vfiotool list' shows all devices"
            )
        raise UnsupportedError(
            f"{address} is in no IOMMU group",
            hint="'vfiotool doctor' tells how to turn the IOMMU on; without one, VFIO gives a device only in "
            "its no-IOMMU mode (iommu='noiommu')",
        )
    return number


def is_noiommu(group_id: int) -> bool:
    """Say whether VFIO made the group up, for a device that no IOMMU guards."""
    return Tree().find(f"{GROUPS}/{group_id}/name") == _NOIOMMU


def group_node(group_id: int) -> str:
    """Return the path of a group's node, which is there once a device of it is on a VFIO driver."""
    prefix = "noiommu-" if is_noiommu(group_id) else ""
    return f"/dev/vfio/{prefix}{group_id}"


def cdev_of(address: str) -> str | None:
    """Return the path of a device's own node, or None: it is not on a VFIO driver, or the kernel has none."""
    names = Tree().find_names(f"{device_path(address)}/vfio-dev")
    return f"/dev/vfio/devices/{names[0]}" if names and Tree().exists("/dev/vfio/devices") else None
