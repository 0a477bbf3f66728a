"""The life cycle of an IOMMU group as a state machine: what must happen for any operation in any state.

The model has one group, its members, containers, and one iommufd with an IOAS. Its terms are the kernel's,
and its rules depend on the era of ``host.era``. The model is pure: it reads nothing from the running kernel.
Tests compare it with real kernels.

Sources: drivers/vfio/vfio.c of 5.10 (commit 63b150fde7a1 came with 5.16), drivers/vfio/vfio_main.c of 6.1,
drivers/vfio/group.c, container.c and device_cdev.c of 6.12, drivers/iommu/iommu.c, drivers/base/bus.c.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from vfiotool.host.era import Era
from vfiotool.stress.model.operation import Bound, Fd, Kind, Operation, kinds_taking
from vfiotool.stress.record import ExpectedUevent
from vfiotool.vfio.uapi import GroupFlags

_NO_FLAGS = GroupFlags(0)


@dataclass(frozen=True, slots=True)
class Member:
    """A device of the group: the kind of its driver, and the number of its open fds from GET_DEVICE_FD.

    ``cdev`` is True if the device's own node is open, ``has_iommufd`` if that fd is bound to the iommufd.
    """

    bound: Bound = Bound.NONE
    fds: int = 0
    cdev: bool = False
    has_iommufd: bool = False


@dataclass(frozen=True, slots=True)
class ContainerState:
    """An open ``/dev/vfio/vfio``, or a closed one that still exists because a group is set to it."""

    is_open: bool = False
    has_iommu: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The state of a group as userspace sees it.

    ``is_open`` is True if the group's fd is open. ``is_orphaned`` is True if all members left VFIO while the
    fd was open: since 5.19 the fd then refers to a group that no longer exists. ``container`` is the index of
    the container to which the group is set, or None.
    """

    members: tuple[Member, ...]
    containers: tuple[ContainerState, ...] = (ContainerState(), ContainerState())
    is_open: bool = False
    is_orphaned: bool = False
    container: int | None = None

    def has(self, fd: Fd, index: int) -> bool:
        """Return True if an fd is open. ``index`` is that of the container or of the member."""
        if fd is Fd.GROUP:
            return self.is_open
        if fd is Fd.CONTAINER:
            return self.containers[index].is_open
        return self.members[index].fds > 0 if fd is Fd.DEVICE else self.members[index].cdev

    @property
    def device_fds(self) -> int:
        """The number of open fds from GET_DEVICE_FD, of all members."""
        return sum(member.fds for member in self.members)

    @property
    def container_users(self) -> int:
        """The kernel's count of users of the container: the group, while it is open, and the device fds."""
        return 0 if self.container is None else self.is_open + self.device_fds

    @property
    def has_iommu(self) -> bool:
        """Return True if the group is set to a container that has an IOMMU."""
        return self.container is not None and self.containers[self.container].has_iommu

    @property
    def has_iommufd(self) -> bool:
        """Return True if a member is bound to the iommufd; the group cannot be opened then."""
        return any(member.has_iommufd for member in self.members)

    @property
    def is_live(self) -> bool:
        """Return True if userspace owns the DMA of the members."""
        return self.container is not None or self.has_iommufd

    def on(self, bound: Bound) -> int:
        """Count the members that are bound to a driver of this kind."""
        return sum(member.bound is bound for member in self.members)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The effects that an operation must have.

    ``errno`` is 0 for success; ``flags`` is then the result of GET_STATUS. ``waits_for`` is the condition for
    which the operation blocks, or empty; ``state``, ``uevents`` and ``probes`` then describe the time after
    the wait. ``crash`` is the kernel's source line that would crash the machine, or empty. ``probes`` are the
    probed kernel functions that run, in this order.
    """

    state: State
    errno: int = 0
    flags: GroupFlags = _NO_FLAGS
    waits_for: str = ""
    crash: str = ""
    uevents: tuple[ExpectedUevent, ...] = ()
    probes: tuple[str, ...] = ()


class Model:
    """The rules of one kernel. The model is immutable, so threads may share it."""

    def __init__(self, era: Era, *, has_device_class: bool = True) -> None:
        """``has_device_class``: the kernel has the class vfio-dev (since 6.1), which sends uevents."""
        self.era = era
        self._has_owner = era.has_dma_owner
        self.has_device_class = has_device_class
        self._rules: dict[Kind, Callable[[State, Operation], Prediction]] = {
            kind: getattr(self, kind.method) for kind in Kind
        }

    def predict(self, state: State, operation: Operation) -> Prediction:
        """Return what an operation of ``operations(state)`` must do."""
        return self._rules[operation.kind](state, operation)

    def operations(self, state: State) -> Iterator[Operation]:
        """Yield the operations whose fd is open, including those that the kernel refuses."""
        for operation, by, index in _all_operations(len(state.members), len(state.containers)):
            if (by is None or state.has(by, index)) and self._is_possible(state, operation):
                yield operation

    def _is_possible(self, state: State, operation: Operation) -> bool:
        """Return False if an operation has nothing to act on, although its fd is open or it needs none."""
        kind = operation.kind
        if kind is Kind.OPEN_CONTAINER:  # if a group still uses the closed one, a new fd is another container
            is_open = state.containers[operation.container].is_open
            return not is_open and state.container != operation.container
        if kind is Kind.SET_CONTAINER:
            return state.containers[operation.container].is_open
        if kind is Kind.OPEN_GROUP:
            return not state.is_orphaned
        member = state.members[operation.member]
        if kind is Kind.OPEN_CDEV:
            return self.era is Era.CDEV and member.bound is Bound.VFIO and not member.cdev
        if kind in (Kind.BIND, Kind.UNBIND):
            return (member.bound is Bound.NONE) == (kind is Kind.BIND)
        return True

    def released(self, state: State, operation: Operation) -> list[tuple[Operation, Prediction]]:
        """Return the operations that unblock an unbind, in this order, and at the end the unbind itself.

        The unbind was requested before the others; the kernel completes it after them. Each operation comes
        with its prediction.
        """
        index, steps = operation.member, list[tuple[Operation, Prediction]]()
        while (prediction := self.predict(state, operation)).waits_for:
            member = state.members[index]
            kind = Kind.CLOSE_DEVICE if member.fds else Kind.CLOSE_CDEV if member.cdev else Kind.CLOSE_GROUP
            release = Operation(kind, member=index)
            steps.append((release, self.predict(state, release)))
            state = steps[-1][1].state
        return [*steps, (operation, prediction)]

    def is_viable(self, state: State) -> bool:
        """Return True if no host driver is bound to a member."""
        return not state.on(Bound.HOST)

    def has_node(self, state: State) -> bool:
        """Return True if ``/dev/vfio/N`` exists."""
        return state.on(Bound.VFIO) > 0 or (not self._has_owner and state.is_open)

    # Containers

    def _open_container(self, state: State, operation: Operation) -> Prediction:
        return Prediction(_with_container(state, operation.container, ContainerState(is_open=True)))

    def _close_container(self, state: State, operation: Operation) -> Prediction:
        """A group that is set to the container keeps it."""
        former = state.containers[operation.container]
        is_kept = state.container == operation.container
        after = replace(former, is_open=False) if is_kept else ContainerState()
        return Prediction(_with_container(state, operation.container, after))

    def _set_iommu(self, state: State, operation: Operation) -> Prediction:
        """A container without a group gets no IOMMU, and a container gets only one.

        Up to 5.18 the kernel does not check here that the group is viable: a host driver loses its DMA while
        it works, and its next step may crash the kernel (NVMe: a page fault in intel_unmap()).
        """
        if state.container != operation.container or state.has_iommu:
            return Prediction(state, errno.EINVAL)
        after = _with_container(state, operation.container, ContainerState(is_open=True, has_iommu=True))
        if not self._has_owner and not self.is_viable(state):
            return Prediction(after, crash="vfio_iommu_type1_attach_group() takes a host driver's DMA away")
        return Prediction(after)

    # The group

    def _open_group(self, state: State, _operation: Operation) -> Prediction:
        """A group has one user at a time, also while only its device fds are open, or a cdev is in use."""
        if not self.has_node(state):
            return Prediction(state, errno.ENOENT)
        if state.is_open or state.device_fds or state.has_iommufd:
            return Prediction(state, errno.EBUSY)
        return Prediction(replace(state, is_open=True))

    def _close_group(self, state: State, _operation: Operation) -> Prediction:
        """Device fds keep the container. Up to 5.18 this fd can be the last reference to the group."""
        after = replace(state, is_open=False, is_orphaned=False)
        loses_node = self.has_node(state) and not self.has_node(after)
        uevents = (ExpectedUevent("vfio", "remove"),) if loses_node else ()
        if state.device_fds:
            return Prediction(after, uevents=uevents)
        return Prediction(_detached(after), uevents=uevents, probes=self._release(state))

    def _get_status(self, state: State, _operation: Operation) -> Prediction:
        if state.is_orphaned:
            return Prediction(state, errno.ENODEV)
        flags = GroupFlags.VIABLE if self.is_viable(state) else _NO_FLAGS
        if state.container is not None:
            flags |= GroupFlags.CONTAINER_SET
        return Prediction(state, flags=flags)

    def _set_container(self, state: State, operation: Operation) -> Prediction:
        """Since 5.19 this claims the DMA of all members; up to 5.18 GET_DEVICE_FD checks if it can."""
        if state.container is not None:
            return Prediction(state, errno.EINVAL)
        if state.is_orphaned:
            return Prediction(state, errno.ENODEV)
        after = replace(state, container=operation.container)
        if not self._has_owner:
            return Prediction(after)
        claim = ("iommu_group_claim_dma_owner",)
        if not self.is_viable(state):
            return Prediction(state, errno.EPERM, probes=claim)
        return Prediction(after, probes=claim)

    def _unset_container(self, state: State, _operation: Operation) -> Prediction:
        if state.container is None:
            return Prediction(state, errno.EINVAL)
        if state.container_users > 1:
            return Prediction(state, errno.EBUSY)
        return Prediction(_detached(state), probes=self._release(state))

    # Device fds

    def _get_device_fd(self, state: State, operation: Operation) -> Prediction:
        """Up to 5.18 the kernel checks the container before the device's name."""
        is_ready = state.has_iommu and (self._has_owner or self.is_viable(state))
        is_there = state.members[operation.member].bound is Bound.VFIO and not state.is_orphaned
        if self._has_owner and not is_there:
            return Prediction(state, errno.ENODEV)
        if not is_ready:
            return Prediction(state, errno.EINVAL)
        if not is_there:
            return Prediction(state, errno.ENODEV)
        return Prediction(_with_fds(state, operation.member, 1))

    def _close_device(self, state: State, operation: Operation) -> Prediction:
        after = _with_fds(state, operation.member, -1)
        if after.is_open or after.device_fds:
            return Prediction(after)
        return Prediction(_detached(after), probes=self._release(after))

    # Nodes of single devices

    def _open_cdev(self, state: State, operation: Operation) -> Prediction:
        """The open fd has no access to the device until BIND_IOMMUFD."""
        member = replace(state.members[operation.member], cdev=True)
        return Prediction(_with_member(state, operation.member, member))

    def _bind_iommufd(self, state: State, operation: Operation) -> Prediction:
        """This claims the group's DMA, unless the group is open; an orphaned group's fd does not count."""
        member = state.members[operation.member]
        if (state.is_open and not state.is_orphaned) or state.device_fds:
            return Prediction(state, errno.EBUSY)
        if member.has_iommufd:
            return Prediction(state, errno.EINVAL)
        claim = ("iommu_device_claim_dma_owner",)
        if not self.is_viable(state):
            return Prediction(state, errno.EPERM, probes=claim)
        after = _with_member(state, operation.member, replace(member, has_iommufd=True))
        return Prediction(after, probes=claim)

    def _attach_iommufd_pt(self, state: State, operation: Operation) -> Prediction:
        return Prediction(state, 0 if state.members[operation.member].has_iommufd else errno.EINVAL)

    def _close_cdev(self, state: State, operation: Operation) -> Prediction:
        member = state.members[operation.member]
        after = _with_member(state, operation.member, replace(member, cdev=False, has_iommufd=False))
        return Prediction(after, probes=("iommu_device_release_dma_owner",) if member.has_iommufd else ())

    # Drivers

    def _bind(self, state: State, operation: Operation) -> Prediction:
        """A live group refuses a host driver: with EBUSY since 5.19, with a BUG before."""
        after = _with_bound(state, operation.member, operation.to)
        if operation.to is not Bound.HOST:
            return self._bound(state, after, operation)
        use = ("iommu_device_use_default_domain",) if self._has_owner else ()
        if state.is_live and self._has_owner:
            return Prediction(state, errno.EBUSY, probes=use)
        if state.is_live:
            return Prediction(after, crash="BUG_ON(vfio_group_nb_verify(group, dev))")
        return replace(self._bound(state, after, operation), probes=use or self._notified(state, _BINDS))

    def _bound(self, state: State, after: State, operation: Operation) -> Prediction:
        events = [ExpectedUevent("pci", "bind", member=operation.member)]
        if operation.to is Bound.VFIO:
            if self.has_device_class:
                events.insert(0, ExpectedUevent("vfio-dev", "add", member=operation.member))
            if not self.has_node(state):
                events.insert(0, ExpectedUevent("vfio", "add"))
        notified = _BINDS if self.has_node(state) else _BINDS[1:]  # the group is made between the two
        probes = self._notified(after, notified)
        return Prediction(after, uevents=tuple(events), probes=probes)

    def _unbind(self, state: State, operation: Operation) -> Prediction:
        """Wait for the device's fds, and up to 5.18 for the container if no other member is on VFIO."""
        member = state.members[operation.member]
        after = _with_bound(state, operation.member, Bound.NONE)
        events = [ExpectedUevent("pci", "unbind", member=operation.member)]
        if member.bound is not Bound.VFIO:
            unuse = ("iommu_device_unuse_default_domain",) if self._has_owner else ()
            is_host = member.bound is Bound.HOST
            probes = (unuse if is_host else ()) or self._notified(state, _UNBINDS)
            return Prediction(after, uevents=tuple(events), probes=probes)
        if not self.has_node(after):
            events.insert(0, ExpectedUevent("vfio", "remove"))
        if self.has_device_class:
            events.insert(0, ExpectedUevent("vfio-dev", "remove", member=operation.member))
        notified = _UNBINDS if self.has_node(after) else _UNBINDS[:1]
        probes = self._notified(state, notified)
        waits_for = self._awaited(state, after, member)
        if self._has_owner and not after.on(Bound.VFIO) and after.is_open:
            probes += self._release(after)
            after = replace(_detached(after), is_orphaned=True)
        return Prediction(after, waits_for=waits_for, uevents=tuple(events), probes=probes)

    def _awaited(self, state: State, after: State, member: Member) -> str:
        if member.fds or member.cdev:
            return "its fds are closed"
        if not self._has_owner and state.container is not None and not after.on(Bound.VFIO):
            return "the container is unset"
        return ""

    # Functions that run in the kernel

    def _release(self, state: State) -> tuple[str, ...]:
        is_owned = self._has_owner and state.container is not None
        return ("iommu_group_release_dma_owner",) if is_owned else ()

    def _notified(self, state: State, actions: tuple[str, ...]) -> tuple[str, ...]:
        """The notifier runs for a group that VFIO knows; up to 5.15 a worker puts the group each time."""
        if self._has_owner or not self.has_node(state):
            return ()
        put = ("vfio_group_put_bg",) if self.era is Era.DEFERRED_PUT else ()
        return tuple(name for action in actions for name in (action, *put))


@functools.cache
def _all_operations(members: int, containers: int) -> tuple[tuple[Operation, Fd | None, int], ...]:
    """Return every operation on a number of members and containers, in the order by which a seed decides.

    Each operation comes with the kind and the index of the fd that it needs.
    """
    found = list[tuple[Operation, Fd | None, int]]()
    for operation in _generated(members, containers):
        by = operation.kind.declaration.by
        found.append((operation, by, 0 if by is None else operation.index(by)))
    return tuple(found)


def _generated(members: int, containers: int) -> Iterator[Operation]:
    for at in range(containers):
        yield from (Operation(kind, container=at) for kind in kinds_taking("container"))
    yield from map(Operation, kinds_taking())
    for at in range(members):
        yield from (Operation(kind, member=at) for kind in kinds_taking("member"))
        for kind in kinds_taking("member", "to"):
            yield from (Operation(kind, member=at, to=to) for to in Bound if to is not Bound.NONE)


_BINDS = ("BIND_DRIVER", "BOUND_DRIVER")
_UNBINDS = ("UNBIND_DRIVER", "UNBOUND_DRIVER")


def _with_container(state: State, index: int, container: ContainerState) -> State:
    containers = (*state.containers[:index], container, *state.containers[index + 1 :])
    return replace(state, containers=containers)


def _with_member(state: State, index: int, member: Member) -> State:
    return replace(state, members=(*state.members[:index], member, *state.members[index + 1 :]))


def _with_bound(state: State, index: int, bound: Bound) -> State:
    return _with_member(state, index, Member(bound))


def _with_fds(state: State, index: int, more: int) -> State:
    member = state.members[index]
    return _with_member(state, index, replace(member, fds=member.fds + more))


def _detached(state: State) -> State:
    """Return the state with the group set to no container; the container loses its IOMMU."""
    if state.container is None:
        return state
    former = state.containers[state.container]
    without_iommu = ContainerState(is_open=former.is_open)
    return replace(_with_container(state, state.container, without_iommu), container=None)
