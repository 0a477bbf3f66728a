"""A VFIO group: the devices that the IOMMU cannot isolate from each other, owned by one process at a time."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable

from vfiotool._shim import lib
from vfiotool.errors import DeviceNotFoundError, GroupNotViableError, KernelError
from vfiotool.host.attributes import GROUPS
from vfiotool.host.devices import read_devices
from vfiotool.host.era import detect_era
from vfiotool.host.groups import blockers
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.vfio.container import Container
from vfiotool.vfio.device_file import KernelDeviceFile
from vfiotool.vfio.handle import Handle, checked
from vfiotool.vfio.nodes import group_node
from vfiotool.vfio.uapi import GroupFlags, GroupIoctl


class Group(Handle):
    """An open group. Threads may share it, with the limits of ``Handle``.

    Closing a group also unsets its container, once its devices are closed: any order of closing frees all
    resources.
    """

    def __init__(self, group_id: int) -> None:
        """Open the group of this number.

        Raises:
            DeviceNotFoundError: there is no such group.
            KernelError: ENOENT, none of its devices is bound to a VFIO driver; EBUSY, the group or one of its
                devices is open already; EACCES, this user may not open the node.
        """
        self.id = group_id
        path = group_node(group_id)
        fd = lib.vt_open(path.encode())
        if fd == -errno.ENOENT:
            raise _no_node(group_id, path)
        super().__init__(checked(fd, "open", path), f"group {group_id}")

    def status(self) -> GroupFlags:
        """Return whether the group is viable, and whether it has a container."""
        result = lib.vt_group_status(self.fileno())
        return GroupFlags(checked(result, GroupIoctl.VFIO_GROUP_GET_STATUS.name, self.name))

    def set_container(self, container: Container) -> None:
        """Set the group's container.

        Kernels up to 5.18 accept a group that is not viable, and fail later. This method checks viability
        first, so that all kernels give the same error.

        Raises:
            GroupNotViableError: a device of the group is bound to a host driver.
            KernelError: EINVAL, the group has a container already.
        """
        self._require_viable()
        result = lib.vt_group_set_container(self.fileno(), container.fileno())
        checked(result, GroupIoctl.VFIO_GROUP_SET_CONTAINER.name, self.name)

    def unset_container(self) -> None:
        """Remove the group from its container.

        Raises:
            KernelError: EBUSY, a device of the group is open; EINVAL, the group has no container.
        """
        result = lib.vt_group_unset_container(self.fileno())
        checked(result, GroupIoctl.VFIO_GROUP_UNSET_CONTAINER.name, self.name)

    def open_device(
        self,
        address: str,
        vf_token: uuid.UUID | None = None,
        *,
        let_go: Callable[[], None] | None = None,
    ) -> KernelDeviceFile:
        """Open a device of the group, whose container must have an IOMMU set.

        ``vf_token`` is for a VF whose PF is on vfio-pci as well, and for that PF while its VFs are open: see
        ``Features.set_vf_token``. ``let_go`` is called when the device is closed or released.

        Raises:
            GroupNotViableError: a device of the group was bound to a host driver meanwhile (≤ 5.18).
            DeviceNotFoundError: the address is empty or contains a NUL.
            KernelError: ENODEV, the device is not in the group or not on a VFIO driver; EINVAL, no
                container or no IOMMU, or a token for a device without VF tokens; EBUSY, another process
                uses the device; EACCES, the VF token is wrong.
        """
        fd = lib.vt_group_device_fd(self.fileno(), device_name(address, vf_token))
        if fd == -errno.EINVAL:
            self._require_viable()
        subject = f"{address} of {self.name}"
        return KernelDeviceFile(
            checked(fd, GroupIoctl.VFIO_GROUP_GET_DEVICE_FD.name, subject), address, let_go
        )

    def _require_viable(self) -> None:
        if GroupFlags.VIABLE not in self.status():
            raise _not_viable(self.id)


def device_name(address: str, vf_token: uuid.UUID | None) -> bytes:
    """Return the name by which VFIO_GROUP_GET_DEVICE_FD opens a device.

    Source: ``vfio_pci_core_match`` in the kernel.

    Raises:
        DeviceNotFoundError: the address is empty or contains a NUL.
    """
    name = os.fsencode(address)
    if not name or b"\0" in name:  # C would stop reading there
        raise DeviceNotFoundError(f"{address!r} is not a device address", hint="use the form 0000:03:00.0")
    return name if vf_token is None else name + b" vf_token=%s" % str(vf_token).encode()


def _no_node(group_id: int, path: str) -> Exception:
    if not os.path.exists(f"{GROUPS}/{group_id}"):
        return DeviceNotFoundError(
            f"there is no IOMMU group {group_id}", hint="'vfiotool groups' shows all groups"
        )
    hint = f"no device of group {group_id} is on a VFIO driver: 'vfiotool show' says how to free a device"
    return KernelError(errno.ENOENT, "open", path, hint=hint)


def _not_viable(group_id: int) -> GroupNotViableError:
    tree = Tree()
    members = tree.find_names(f"{GROUPS}/{group_id}/devices")
    devices = read_devices(tree, members, PciNames.of_this_machine())
    found = blockers(devices, detect_era(tree))
    named = ", ".join(f"{one.address} ({one.driver})" for one in found)
    return GroupNotViableError(
        f"group {group_id} is not viable: {named or 'a device of the group'} is bound to a host driver",
        blockers=[one.address for one in found],
        hint="; ".join(f"'vfiotool show {one.address}' says how to free it" for one in found[:1])
        or "'vfiotool groups' shows what blocks it",
    )
