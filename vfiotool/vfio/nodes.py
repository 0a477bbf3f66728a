"""The device nodes of VFIO and iommufd below /dev."""

from __future__ import annotations

import errno

from vfiotool._shim import lib
from vfiotool.errors import DeviceNotFoundError, UnsupportedError
from vfiotool.host.attributes import GROUPS, device_path, find_group
from vfiotool.host.tree import Tree
from vfiotool.vfio.handle import checked

CONTAINER = "/dev/vfio/vfio"
IOMMUFD = "/dev/iommu"
_NOIOMMU = "vfio-noiommu"  # VFIO's name for the groups that it creates itself

_HINTS = {
    CONTAINER: "load VFIO with 'modprobe vfio-pci'; the kernel needs CONFIG_VFIO",
    IOMMUFD: "load iommufd with 'modprobe iommufd'; the kernel needs CONFIG_IOMMUFD (since 6.2)",
}


def open_node(path: str) -> int:
    """Open ``CONTAINER`` or ``IOMMUFD``, and return the file descriptor.

    Raises:
        UnsupportedError: this kernel has no such interface.
        KernelError: the node cannot be opened.
    """
    fd = lib.vt_open(path.encode())
    if fd in (-errno.ENOENT, -errno.ENODEV, -errno.ENXIO):
        raise UnsupportedError(f"this kernel has no VFIO: no driver is behind {path}", hint=_HINTS[path])
    return checked(fd, "open", path)


def group_of(address: str) -> int:
    """Return the number of a device's IOMMU group.

    Raises:
        DeviceNotFoundError: there is no such device.
        UnsupportedError: the device has no group.
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
            hint="'vfiotool doctor' shows how to turn the IOMMU on; without an IOMMU, VFIO opens a device "
            "only in its no-IOMMU mode (iommu='noiommu'), where its DMA reaches all memory",
        )
    return number


def is_noiommu(group_id: int) -> bool:
    """Return True if VFIO created the group itself, for a device that no IOMMU isolates."""
    return Tree().find(f"{GROUPS}/{group_id}/name") == _NOIOMMU


def group_node(group_id: int) -> str:
    """Return the path of a group's node, which exists once a device of it is bound to a VFIO driver."""
    prefix = "noiommu-" if is_noiommu(group_id) else ""
    return f"/dev/vfio/{prefix}{group_id}"


def cdev_of(address: str) -> str | None:
    """Return the path of a device's cdev.

    None if the device is not on a VFIO driver, or the kernel has no cdevs.
    """
    names = Tree().find_names(f"{device_path(address)}/vfio-dev")
    return f"/dev/vfio/devices/{names[0]}" if names and Tree().exists("/dev/vfio/devices") else None
