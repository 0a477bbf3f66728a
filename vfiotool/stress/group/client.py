"""What the model speaks of, done: the operations of one group, on this machine."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence
from typing import cast

from vfiotool._shim import lib
from vfiotool.binding.steps import DRIVERS
from vfiotool.host.attributes import device_path
from vfiotool.stress.group.sysfs import ask, write
from vfiotool.stress.groups import STUB, VFIO
from vfiotool.stress.model.lifecycle import Bound, Kind, Operation
from vfiotool.vfio.iommu.iommufd import Iommufd
from vfiotool.vfio.nodes import CONTAINER, cdev_of, group_node
from vfiotool.vfio.uapi import (
    DeviceIoctl,
    IommuType,
    vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd,
)


class GroupClient:
    """The fds of one group and its containers. A handle of one thread; ``close()`` leaves drivers alone.

    Operations are done the bare way, with nothing between them and the kernel: none is refused here, and
    one that blocks does.
    """

    def __init__(self, group: int, members: Sequence[str], hosts: Mapping[str, str]) -> None:
        """Take the addresses of the members, in the model's order, and the host driver of each."""
        self._node = group_node(group).encode()
        self.members = tuple(members)
        self._hosts = dict(hosts)
        self._containers: dict[int, int] = {}
        self._group: int | None = None
        self._devices: dict[int, list[int]] = {index: [] for index in range(len(self.members))}
        self._cdevs: dict[int, int] = {}
        self._iommufd: Iommufd | None = None

    def do(self, operation: Operation) -> tuple[int, int]:
        """Do it, and return its errno, or 0, and the flags of a GET_STATUS."""
        result = self._do(operation)
        return (-result, 0) if result < 0 else (0, result if operation.kind is Kind.GET_STATUS else 0)

    def container(self, at: int) -> int:
        """Return the fd of a container."""
        return self._containers[at]

    def borrow(self, at: int, fd: int) -> None:
        """Use another process's container, by an fd that is closed when it is given back."""
        self._containers[at] = fd

    def give_back(self, at: int) -> None:
        """Have no part any more in a container that was borrowed."""
        os.close(self._containers.pop(at))

    def device(self, member: int) -> int | None:
        """Return the fd by which a device can be used: of the group, or a node's that has an IOAS."""
        fds = self._devices[member]
        return fds[-1] if fds else self._cdevs.get(member)

    @property
    def iommufd(self) -> Iommufd | None:
        """The iommufd that the nodes of devices are bound to, once one was."""
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

    def _do(self, operation: Operation) -> int:
        kind, at = operation.kind, operation.container
        if kind is Kind.OPEN_CONTAINER:
            return _keep(self._containers, at, lib.vt_open(CONTAINER.encode()))
        if kind is Kind.CLOSE_CONTAINER:
            return _closed(self._containers.pop(at))
        if kind is Kind.SET_IOMMU:
            return lib.vt_container_set_iommu(self._containers[at], IommuType.TYPE1v2)
        if kind is Kind.OPEN_GROUP:
            return self._keep_group(lib.vt_open(self._node))
        if kind is Kind.BIND:
            return self._bind(self.members[operation.member], operation.to)
        if kind is Kind.UNBIND:
            return self._unbind(self.members[operation.member])
        if kind is Kind.CLOSE_DEVICE:
            return _closed(self._devices[operation.member].pop())
        if kind in (Kind.OPEN_CDEV, Kind.BIND_IOMMUFD, Kind.ATTACH_IOMMUFD_PT, Kind.CLOSE_CDEV):
            return self._do_by_cdev(operation)
        return self._do_by_group(operation)

    def _do_by_group(self, operation: Operation) -> int:
        group = cast("int", self._group)  # the model has it open
        if operation.kind is Kind.CLOSE_GROUP:
            self._group = None
            return _closed(group)
        if operation.kind is Kind.GET_STATUS:
            return lib.vt_group_status(group)
        if operation.kind is Kind.SET_CONTAINER:
            return lib.vt_group_set_container(group, self._containers[operation.container])
        if operation.kind is Kind.UNSET_CONTAINER:
            return lib.vt_group_unset_container(group)
        fd = lib.vt_group_device_fd(group, self.members[operation.member].encode("ascii"))
        if fd >= 0:
            self._devices[operation.member].append(fd)
        return fd

    def _do_by_cdev(self, operation: Operation) -> int:
        at = operation.member
        if operation.kind is Kind.OPEN_CDEV:
            path = cdev_of(self.members[at])
            return -errno.ENOENT if path is None else _keep(self._cdevs, at, lib.vt_open(path.encode()))
        if operation.kind is Kind.CLOSE_CDEV:
            return _closed(self._cdevs.pop(at))
        if self._iommufd is None:
            self._iommufd = Iommufd()
        if operation.kind is Kind.BIND_IOMMUFD:
            bind = vfio_device_bind_iommufd(iommufd=self._iommufd.fileno())
            return _ask(self._cdevs[at], DeviceIoctl.VFIO_DEVICE_BIND_IOMMUFD, bind)
        attach = vfio_device_attach_iommufd_pt(pt_id=self._iommufd.ioas)
        return _ask(self._cdevs[at], DeviceIoctl.VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach)

    def _keep_group(self, fd: int) -> int:
        """One that the model did not expect is closed again: the result alone tells of it."""
        if fd >= 0 and self._group is not None:
            os.close(fd)
        elif fd >= 0:
            self._group = fd
        return fd

    def _bind(self, address: str, to: Bound) -> int:
        driver = {Bound.VFIO: VFIO, Bound.STUB: STUB, Bound.HOST: self._hosts.get(address, "")}[to]
        path = f"{device_path(address)}/driver_override"
        return -(write(path, driver) or write(f"{DRIVERS}/{driver}/bind", address))

    def _unbind(self, address: str) -> int:
        return -write(f"{device_path(address)}/driver/unbind", address)


def _keep(fds: dict[int, int], at: int, fd: int) -> int:
    if fd >= 0:
        fds[at] = fd
    return fd


def _closed(fd: int) -> int:
    os.close(fd)
    return 0


def _ask(fd: int, request: int, question: vfio_device_bind_iommufd | vfio_device_attach_iommufd_pt) -> int:
    question.argsz = ctypes.sizeof(question)
    return ask(fd, request, bytearray(question))
