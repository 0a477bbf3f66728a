"""Execute the model's operations on one group of this machine."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence
from typing import cast

from vfiotool._shim import lib
from vfiotool.binding.steps import CLEAR
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.driver_ids import takes_any_device
from vfiotool.stress.group.sysfs import ioctl
from vfiotool.stress.groups import STUB, VFIO
from vfiotool.stress.model.operation import Bound, Operation
from vfiotool.util import kernel_files
from vfiotool.vfio.iommu.iommufd import Iommufd
from vfiotool.vfio.nodes import CONTAINER, cdev_of, group_node
from vfiotool.vfio.uapi import (
    DeviceIoctl,
    IommuType,
    vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd,
)


class GroupClient:
    """The fds of one group and of its containers. Not thread-safe. ``close()`` leaves drivers bound.

    Each operation is the bare system call: nothing is refused here, and a call that blocks in the kernel
    blocks the caller.
    """

    def __init__(self, group: int, members: Sequence[str], hosts: Mapping[str, str]) -> None:
        """``members`` are the addresses, in the model's order; ``hosts`` has the host driver of each."""
        self._node = group_node(group).encode()
        self.members = tuple(members)
        self._hosts = dict(hosts)
        self._containers: dict[int, int] = {}
        self._group: int | None = None
        self._devices: dict[int, list[int]] = {index: [] for index in range(len(self.members))}
        self._cdevs: dict[int, int] = {}
        self._iommufd: Iommufd | None = None

    def do(self, operation: Operation) -> tuple[int, int]:
        """Execute an operation; return its errno, or 0, and its value: the flags of a GET_STATUS, else 0."""
        result: int = getattr(self, operation.kind.method)(operation)
        if result < 0:
            return -result, 0
        return 0, result if operation.kind.declaration.returns_value else 0

    def container(self, at: int) -> int:
        """Return the fd of a container."""
        return self._containers[at]

    def borrow(self, at: int, fd: int) -> None:
        """Use another process's container by an fd, which ``give_back`` closes."""
        self._containers[at] = fd

    def give_back(self, at: int) -> None:
        """Close the fd of a borrowed container."""
        os.close(self._containers.pop(at))

    def device(self, member: int) -> int | None:
        """Return the fd by which a device can be used: from the group, or else of the device's own node."""
        fds = self._devices[member]
        return fds[-1] if fds else self._cdevs.get(member)

    @property
    def iommufd(self) -> Iommufd | None:
        """The iommufd to which nodes of devices are bound, or None before the first BIND_IOMMUFD."""
        return self._iommufd

    def close(self) -> None:
        """Close all fds."""
        for fds in self._devices.values():
            while fds:
                os.close(fds.pop())
        while self._cdevs:
            os.close(self._cdevs.popitem()[1])
        if self._iommufd is not None:
            self._iommufd.close()
            self._iommufd = None
        if self._group is not None:
            os.close(self._group)
            self._group = None
        while self._containers:
            os.close(self._containers.popitem()[1])

    # The operations: ``Kind.method`` is the name of each; they return the kernel's result, or -errno.

    def _open_container(self, operation: Operation) -> int:
        return _keep(self._containers, operation.container, lib.vt_open(CONTAINER.encode()))

    def _close_container(self, operation: Operation) -> int:
        return _closed(self._containers.pop(operation.container))

    def _set_iommu(self, operation: Operation) -> int:
        return lib.vt_container_set_iommu(self._containers[operation.container], IommuType.TYPE1v2)

    def _set_container(self, operation: Operation) -> int:
        return lib.vt_group_set_container(self._group_fd, self._containers[operation.container])

    def _unset_container(self, _operation: Operation) -> int:
        return lib.vt_group_unset_container(self._group_fd)

    def _open_group(self, _operation: Operation) -> int:
        """Keep the fd. If the group is open already, the model does not expect a second fd: close it."""
        fd = lib.vt_open(self._node)
        if fd >= 0 and self._group is not None:
            os.close(fd)
        elif fd >= 0:
            self._group = fd
        return fd

    def _close_group(self, _operation: Operation) -> int:
        fd, self._group = self._group_fd, None
        return _closed(fd)

    def _get_status(self, _operation: Operation) -> int:
        return lib.vt_group_status(self._group_fd)

    def _get_device_fd(self, operation: Operation) -> int:
        fd = lib.vt_group_device_fd(self._group_fd, self.members[operation.member].encode("ascii"))
        if fd >= 0:
            self._devices[operation.member].append(fd)
        return fd

    def _close_device(self, operation: Operation) -> int:
        return _closed(self._devices[operation.member].pop())

    def _open_cdev(self, operation: Operation) -> int:
        path = cdev_of(self.members[operation.member])
        if path is None:
            return -errno.ENOENT
        return _keep(self._cdevs, operation.member, lib.vt_open(path.encode()))

    def _close_cdev(self, operation: Operation) -> int:
        return _closed(self._cdevs.pop(operation.member))

    def _bind_iommufd(self, operation: Operation) -> int:
        bind = vfio_device_bind_iommufd(iommufd=self._open_iommufd().fileno())
        return _ioctl(self._cdevs[operation.member], DeviceIoctl.VFIO_DEVICE_BIND_IOMMUFD, bind)

    def _attach_iommufd_pt(self, operation: Operation) -> int:
        attach = vfio_device_attach_iommufd_pt(pt_id=self._open_iommufd().ioas)
        return _ioctl(self._cdevs[operation.member], DeviceIoctl.VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach)

    def _bind(self, operation: Operation) -> int:
        address = self.members[operation.member]
        drivers = {Bound.VFIO: VFIO, Bound.STUB: STUB, Bound.HOST: self._hosts.get(address, "")}
        driver = drivers[operation.to]
        path = f"{device_path(address)}/driver_override"
        override = driver if takes_any_device(driver) else CLEAR
        return -(
            kernel_files.write(path, override) or kernel_files.write(f"{DRIVERS}/{driver}/bind", address)
        )

    def _unbind(self, operation: Operation) -> int:
        address = self.members[operation.member]
        return -kernel_files.write(f"{device_path(address)}/driver/unbind", address)

    @property
    def _group_fd(self) -> int:
        return cast("int", self._group)  # the model allows these operations only while the group is open

    def _open_iommufd(self) -> Iommufd:
        if self._iommufd is None:
            self._iommufd = Iommufd()
        return self._iommufd


def _keep(fds: dict[int, int], at: int, fd: int) -> int:
    if fd >= 0:
        fds[at] = fd
    return fd


def _closed(fd: int) -> int:
    os.close(fd)
    return 0


def _ioctl(fd: int, request: int, argument: vfio_device_bind_iommufd | vfio_device_attach_iommufd_pt) -> int:
    argument.argsz = ctypes.sizeof(argument)
    return ioctl(fd, request, bytearray(argument))
