"""Execute the model's operations on one group of this machine."""

from __future__ import annotations

import errno
import fcntl
import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from vfiotool.stress.group.fds import VFIO_DEVICE_BIND_IOMMUFD, GroupFds
from vfiotool.stress.groups import STUB, VFIO
from vfiotool.stress.model.operation import Bound, Operation
from vfiotool.vfio.group import device_name
from vfiotool.vfio.iommu.iommufd import Iommufd, bind_question, token_bytes, token_probe
from vfiotool.vfio.nodes import group_node
from vfiotool.vfio.uapi import vfio_device_bind_iommufd


class GroupClient(GroupFds):
    """The open fds of one group of this machine. Not thread-safe. ``close()`` leaves drivers bound."""

    def __init__(
        self,
        group: int,
        members: Sequence[str],
        hosts: Mapping[str, str],
        tokens: Mapping[str, uuid.UUID] = MappingProxyType({}),
    ) -> None:
        """``members`` are the addresses, in the model's order; the rest is as in ``GroupSpec``."""
        super().__init__()
        self._tokens = dict(tokens)
        self.members = tuple(members)
        self.nodes |= dict.fromkeys(members, group_node(group))
        self._drivers = {address: {Bound.VFIO: VFIO, Bound.STUB: STUB} for address in members}
        for address, driver in hosts.items():
            self._drivers[address][Bound.HOST] = driver
        self._iommufd: Iommufd | None = None

    def do(self, operation: Operation) -> tuple[int, int]:
        """Execute an operation; return its errno, or 0, and its value: the flags of a GET_STATUS, else 0."""
        form = operation.kind.declaration.script
        call = getattr(self, form.function)
        try:
            value = call(*(self._argument(name, operation) for name in form.arguments))
        except OSError as error:
            return error.errno or errno.EIO, 0
        return 0, value if form.returns_value else 0

    def container(self, at: int) -> int:
        """Return the fd of a container."""
        return self.last(f"container {at}")

    def borrow(self, at: int, fd: int) -> None:
        """Use another process's container by an fd, which ``give_back`` closes."""
        self.opened[f"container {at}"] = [fd]

    def give_back(self, at: int) -> None:
        """Close the fd of a borrowed container."""
        self.close_container(at)

    def device(self, member: int) -> int | None:
        """Return the fd by which a device can be used: from the group, or else of the device's own node."""
        address = self.members[member]
        fds = self.opened.get(f"device {address}") or self.opened.get(f"cdev {address}")
        return fds[-1] if fds else None

    @property
    def iommufd(self) -> Iommufd | None:
        """The iommufd to which nodes of devices are bound, or None before the first BIND_IOMMUFD."""
        return self._iommufd

    def ioas(self) -> int:
        """Return the id of the IO address space; the first call creates it, with its iommufd."""
        if self._iommufd is None:
            self._iommufd = Iommufd()
            self.opened["iommufd"] = [self._iommufd.fileno()]
        return self._iommufd.ioas

    def opening_name(self, device: str) -> bytes:
        """Return the name by which the group opens a device: with its VF token if it has one."""
        return device_name(device, self._tokens.get(device))

    def bind_iommufd(self, device: str) -> int:
        """Bind a device to the iommufd, by its VF token if the kernel takes it.

        Kernels before 6.18, and some drivers, ask for no token here.
        """
        token = self._tokens.get(device)
        if token is None:
            return super().bind_iommufd(device)
        self.ioas()
        memory = token_bytes(token) if self._takes_token(device) else None
        self._bind_cdev(device, bind_question(self.last("iommufd"), memory))
        return 0

    def close(self) -> None:
        """Close all fds. The iommufd is the last: a device that is bound to it keeps it."""
        iommufd, self._iommufd = self._iommufd, None
        self.opened.pop("iommufd", None)
        self.close_all()
        if iommufd is not None:
            iommufd.close()

    def _takes_token(self, device: str) -> bool:
        try:
            self._bind_cdev(device, token_probe(self.last("iommufd")))
        except OSError as error:
            return error.errno != errno.EINVAL
        return True

    def _bind_cdev(self, device: str, question: vfio_device_bind_iommufd) -> None:
        fcntl.ioctl(self.last(f"cdev {device}"), VFIO_DEVICE_BIND_IOMMUFD, bytes(question))

    def _argument(self, name: str, operation: Operation) -> int | str:
        """Return an argument of an operation's call, by its name in the declaration."""
        address = self.members[operation.member]
        values: dict[str, int | str] = {
            "group": self.members[0],
            "container": operation.container,
            "member": address,
            "to": self._drivers[address].get(operation.to, ""),
        }
        return values[name]
