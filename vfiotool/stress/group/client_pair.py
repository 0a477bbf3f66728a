"""Two processes that share a group, as two users would: each fd is open in one of them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from types import MappingProxyType

from vfiotool.stress.group.client import GroupClient
from vfiotool.stress.model.operation import Fd, Kind, Operation
from vfiotool.util.child import fork_child

PROCESSES = 2

_iommus = itertools.count(1)


class ClientPair:
    """This process and a second process, which starts when it is first needed. Not thread-safe.

    The process that opened an fd executes the operations on that fd. Only for a SET_CONTAINER, a container is
    lent to the process that has the group. The nodes of single devices are all open in this process, because
    the iommufd is.
    """

    def __init__(
        self,
        group: int,
        members: Sequence[str],
        hosts: Mapping[str, str],
        tokens: Mapping[str, uuid.UUID] = MappingProxyType({}),
    ) -> None:
        self.first = GroupClient(group, members, hosts, tokens)
        """The fds of this process."""
        self._arguments = (group, tuple(members), dict(hosts), dict(tokens))
        self._second: _SecondProcess | None = None
        self._owners: dict[tuple[Fd, int], list[int]] = {}
        """The processes in which a container, the group or a member is open, in the order of opening."""
        self._iommus: dict[int, int] = {}

    def do(self, operation: Operation, process: int = 0) -> tuple[int, int]:
        """Execute an operation; return its errno, or 0, and its value: the flags of a GET_STATUS, else 0.

        ``process`` executes the operation if both processes can: it opens an fd, or writes to sysfs.
        """
        owner = self.owner(operation, process)
        if operation.kind is Kind.SET_CONTAINER and self._owner(Fd.CONTAINER, operation) != owner:
            return self._set_foreign_container(operation, owner)
        errno, flags = self._execute(owner, operation)
        if not errno:
            self._note(operation, owner)
        return errno, flags

    def owner(self, operation: Operation, process: int = 0) -> int:
        """Return the process that executes an operation."""
        declaration = operation.kind.declaration
        if declaration.takes_process:
            return process
        return 0 if declaration.by is None else self._owner(declaration.by, operation)

    def owns_container(self, container: int) -> bool:
        """Return True if a container is open in this process."""
        return self._owners.get((Fd.CONTAINER, container)) == [0]

    def iommu(self, container: int) -> int:
        """Return the number of a container's IOMMU, which no other IOMMU has in this process."""
        return self._iommus[container]

    def owns_device(self, member: int) -> bool:
        """Return True if the fd of a member that was opened last is open in this process."""
        return self._owners.get((Fd.DEVICE, member), [])[-1:] == [0]

    def start(self, operation: Operation) -> None:
        """Start an operation in the second process; ``finish`` waits for its end."""
        self._ready().start(operation)

    def finish(self, operation: Operation) -> tuple[int, int]:
        """Return the errno and the value of the operation that was started."""
        errno, flags = self._ready().finish()
        if not errno:
            self._note(operation, 1)
        return errno, flags

    def close(self) -> None:
        """Close all fds, and end the second process."""
        self.first.close()
        if self._second is not None:
            self._second.close()
            self._second = None
        self._owners.clear()

    def _execute(self, owner: int, operation: Operation) -> tuple[int, int]:
        if owner == 0:
            return self.first.do(operation)
        other = self._ready()
        other.start(operation)
        return other.finish()

    def _set_foreign_container(self, operation: Operation, owner: int) -> tuple[int, int]:
        at = operation.container
        if owner == 0:
            self.first.borrow(at, self._ready().lend(at))
        else:
            self._ready().borrow(at, self.first.container(at))
        result = self._execute(owner, operation)
        if owner == 0:
            self.first.give_back(at)
        else:
            self._ready().give_back(at)
        return result

    def _owner(self, fd: Fd, operation: Operation) -> int:
        """Return the process that has the fd of an operation."""
        owners = self._owners.get((fd, operation.index(fd)))
        return owners[-1] if owners else 0

    def _note(self, operation: Operation, owner: int) -> None:
        opens, closes = operation.kind.declaration.opens, operation.kind.declaration.closes
        if opens is not None:
            self._owners.setdefault((opens, operation.index(opens)), []).append(owner)
        if closes is not None:
            owners = self._owners[closes, operation.index(closes)]
            del owners[-1 - owners[::-1].index(owner)]  # a client closes the fd that it opened last
        if operation.kind is Kind.SET_IOMMU:
            self._iommus[operation.container] = next(_iommus)

    def _ready(self) -> _SecondProcess:
        if self._second is None:
            self._second = _SecondProcess(lambda: GroupClient(*self._arguments))
        return self._second


class _SecondProcess:
    """A client in a second process, which ends with this process."""

    def __init__(self, client: Callable[[], GroupClient]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        # A second process with an inherited descriptor of a device would keep the device busy.
        self.pid = fork_child(lambda: _serve(theirs, client()), kept_fds={0, 1, 2, theirs.fileno()})
        theirs.close()

    def start(self, operation: Operation) -> None:
        self._pipe.send(("do", operation))

    def finish(self) -> tuple[int, int]:
        errno, flags = self._pipe.recv()
        return errno, flags

    def lend(self, container: int) -> int:
        self._pipe.send(("lend", container))
        return reduction.recv_handle(self._pipe)

    def borrow(self, container: int, fd: int) -> None:
        self._pipe.send(("borrow", container))
        reduction.send_handle(self._pipe, fd, self.pid)

    def give_back(self, container: int) -> None:
        self._pipe.send(("give back", container))

    def close(self) -> None:
        self._pipe.close()
        os.waitpid(self.pid, 0)


def _serve(pipe: Connection, client: GroupClient) -> None:
    while True:
        try:
            verb, what = pipe.recv()
        except EOFError:
            return
        if verb == "do":
            pipe.send(client.do(what))
        elif verb == "lend":
            reduction.send_handle(pipe, client.container(what), os.getppid())
        elif verb == "borrow":
            client.borrow(what, reduction.recv_handle(pipe))
        else:
            client.give_back(what)
