"""Processes that share a group: each of its fds is one of theirs, as with users apart from each other."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection

from vfiotool.stress.group.client import GroupClient
from vfiotool.stress.model.operation import Fd, Kind, Operation
from vfiotool.util.child import fork_child

PROCESSES = 2

_iommus = itertools.count(1)


class ClientPair:
    """This process and another one, which starts when it is first needed. A handle of one thread.

    Who opens an fd does what is done by it. A container is lent to the process that has the group, for a
    SET_CONTAINER alone. Nodes of single devices are all this process's: their iommufd is.
    """

    def __init__(self, group: int, members: Sequence[str], hosts: Mapping[str, str]) -> None:
        self.client = GroupClient(group, members, hosts)
        self._arguments = (group, tuple(members), dict(hosts))
        self._other: _OtherProcess | None = None
        self._owners: dict[tuple[Fd, int], list[int]] = {}
        """The processes that have the fds of a container, the group or a member, in the order of opening."""
        self._iommus: dict[int, int] = {}

    def do(self, operation: Operation, process: int = 0) -> tuple[int, int]:
        """Execute an operation; return its errno, or 0, and the flags of a GET_STATUS.

        ``process`` executes it if any process can: it opens what is opened, and writes to sysfs.
        """
        owner = self.owner(operation, process)
        if operation.kind is Kind.SET_CONTAINER and self._owner(Fd.CONTAINER, operation) != owner:
            return self._set_foreign_container(operation, owner)
        errno, flags = self._by(owner, operation)
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
        """Have the other process do an operation, and do not wait for it: ``finish`` does."""
        self._ready().start(operation)

    def finish(self, operation: Operation) -> tuple[int, int]:
        """Return what came of the operation that was started."""
        errno, flags = self._ready().finish()
        if not errno:
            self._note(operation, 1)
        return errno, flags

    def close(self) -> None:
        """Close all fds, and end the other process."""
        self.client.close()
        if self._other is not None:
            self._other.close()
            self._other = None
        self._owners.clear()

    def _by(self, owner: int, operation: Operation) -> tuple[int, int]:
        if owner == 0:
            return self.client.do(operation)
        other = self._ready()
        other.start(operation)
        return other.finish()

    def _set_foreign_container(self, operation: Operation, owner: int) -> tuple[int, int]:
        at = operation.container
        if owner == 0:
            self.client.borrow(at, self._ready().lend(at))
        else:
            self._ready().borrow(at, self.client.container(at))
        result = self._by(owner, operation)
        if owner == 0:
            self.client.give_back(at)
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
            self._owners[closes, operation.index(closes)].remove(owner)
        if operation.kind is Kind.SET_IOMMU:
            self._iommus[operation.container] = next(_iommus)

    def _ready(self) -> _OtherProcess:
        if self._other is None:
            self._other = _OtherProcess(*self._arguments)
        return self._other


class _OtherProcess:
    """An actor in a process of its own, which ends with this one."""

    def __init__(self, group: int, members: Sequence[str], hosts: Mapping[str, str]) -> None:
        self._line, theirs = multiprocessing.Pipe()
        # A second process with an inherited descriptor of a device would keep the device busy.
        self.pid = fork_child(
            lambda: _serve(theirs, GroupClient(group, members, hosts)), kept_fds={0, 1, 2, theirs.fileno()}
        )
        theirs.close()

    def start(self, operation: Operation) -> None:
        self._line.send(("do", operation))

    def finish(self) -> tuple[int, int]:
        errno, flags = self._line.recv()
        return errno, flags

    def lend(self, container: int) -> int:
        self._line.send(("lend", container))
        return reduction.recv_handle(self._line)

    def borrow(self, container: int, fd: int) -> None:
        self._line.send(("borrow", container))
        reduction.send_handle(self._line, fd, self.pid)

    def give_back(self, container: int) -> None:
        self._line.send(("give back", container))

    def close(self) -> None:
        self._line.close()
        os.waitpid(self.pid, 0)


def _serve(line: Connection, client: GroupClient) -> None:
    while True:
        try:
            verb, what = line.recv()
        except EOFError:
            return
        if verb == "do":
            line.send(client.do(what))
        elif verb == "lend":
            reduction.send_handle(line, client.container(what), os.getppid())
        elif verb == "borrow":
            client.borrow(what, reduction.recv_handle(line))
        else:
            client.give_back(what)
