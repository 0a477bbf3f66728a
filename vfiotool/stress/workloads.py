"""The workloads of the command line: each chooses the calls of a cycle.

A cycle starts with the group at rest. A chooser yields a call, and chooses the next by the state of the group
after the call was executed. The caller brings the group back to rest after the cycle.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vfiotool.host.era import Era
from vfiotool.stress.group.client_pair import PROCESSES
from vfiotool.stress.model.operation import Bound, Kind, Operation
from vfiotool.stress.model.walk import choose
from vfiotool.stress.operations.lifecycle import call_of
from vfiotool.stress.operations.registry import GroupOperations
from vfiotool.stress.record import Call

_STEPS = 60
"""The operations of a random walk."""

Cycle = Callable[[GroupOperations, random.Random], Iterator[Call]]


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload. ``lacks`` returns what a group lacks for it, or an empty text."""

    name: str
    cycle: Cycle
    lacks: Callable[[GroupOperations], str] = lambda _: ""


def _bind(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    """Bind the members, in random order, to their host drivers or else to pci-stub, and back."""
    members = list(range(len(operations.members)))
    for at in rng.sample(members, len(members)):
        yield _call(Kind.UNBIND, at)
        yield _call(Kind.BIND, at, to=_host_of(operations, at))
    for at in rng.sample(members, len(members)):
        yield _call(Kind.UNBIND, at)
        yield _call(Kind.BIND, at, to=Bound.VFIO)


def _group(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    """Walk through the model; a random process opens each fd."""
    to = [Bound.VFIO, Bound.STUB, *([Bound.HOST] if operations.have_hosts else [])]
    for _ in range(_STEPS):
        operation, _prediction = choose(operations.harness.model, operations.harness.state, rng, to=to)
        yield call_of(operation, rng.randrange(PROCESSES))


def _viability(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    """Use the group while a sibling is on a host driver, on pci-stub, on none; then bind it to drivers."""
    sibling, ours = rng.sample(range(len(operations.members)), 2)
    yield _call(Kind.UNBIND, sibling)
    yield _call(Kind.OPEN_CONTAINER)
    yield _call(Kind.OPEN_GROUP)
    for to in rng.sample([Bound.HOST, Bound.STUB, Bound.NONE], 3):
        if to is not Bound.NONE:
            yield _call(Kind.BIND, sibling, to=to)
        yield _call(Kind.GET_STATUS)
        yield _call(Kind.SET_CONTAINER)
        yield _call(Kind.SET_IOMMU)
        yield _call(Kind.GET_DEVICE_FD, ours)
        yield _call(Kind.GET_STATUS)
        yield _call(Kind.CLOSE_DEVICE, ours)
        yield _call(Kind.UNSET_CONTAINER)
        if to is not Bound.NONE:
            yield _call(Kind.UNBIND, sibling)
    yield from _bind_host_to_live_group(sibling, ours)


def _bind_host_to_live_group(sibling: int, ours: int) -> Iterator[Call]:
    """Bind a member of a live group to a host driver: EBUSY since 5.19, a BUG before."""
    yield _call(Kind.SET_CONTAINER)
    yield _call(Kind.SET_IOMMU)
    yield _call(Kind.GET_DEVICE_FD, ours)
    yield _call(Kind.BIND, sibling, to=Bound.HOST)
    yield _call(Kind.BIND, sibling, to=Bound.STUB)


def _dma(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    yield from set_up(operations, rng)
    yield from operations.dma.choose(rng)


def _irq(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    yield from set_up(operations, rng)
    yield from operations.interrupts.choose(rng)


def _reset(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    yield from set_up(operations, rng)
    yield from operations.resets.choose(rng)


def _hotplug(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    yield from operations.hotplug.choose(rng)


def _sriov(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    yield from operations.vfs.choose(rng)


def _race(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    yield from operations.races.choose(rng)


def repetition(cycles: Iterable[Sequence[Call]]) -> Cycle:
    """Return a chooser that yields the calls of the n-th of these cycles in its n-th cycle."""
    waiting = iter(cycles)
    return lambda _operations, _rng: iter(next(waiting, ()))


def set_up(operations: GroupOperations, rng: random.Random) -> Iterator[Call]:
    """Yield the calls that open a member for use, by its group or by its own node."""
    at = rng.randrange(len(operations.members))
    if operations.harness.model.era is Era.CDEV and rng.random() < 0.5:
        for kind in (Kind.OPEN_CDEV, Kind.BIND_IOMMUFD, Kind.ATTACH_IOMMUFD_PT):
            yield _call(kind, at)
        return
    for kind in (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP, Kind.SET_CONTAINER, Kind.SET_IOMMU):
        yield _call(kind)
    yield _call(Kind.GET_DEVICE_FD, at)


def _call(kind: Kind, member: int = 0, to: Bound = Bound.NONE) -> Call:
    return call_of(Operation(kind, member=member, to=to))


def _host_of(operations: GroupOperations, at: int) -> Bound:
    return Bound.HOST if operations.harness.spec.hosts.get(operations.members[at]) else Bound.STUB


def _lacks_sibling(operations: GroupOperations) -> str:
    if len(operations.members) < 2:
        return "a second device in the group"
    return "" if operations.have_hosts else "a host driver for each device of the group"


def _lacks_vfs(operations: GroupOperations) -> str:
    return "" if operations.vfs.pfs else "a device that can have VFs, on its host driver"


_TABLE = (
    Workload("bind", _bind),
    Workload("group", _group),
    Workload("viability", _viability, _lacks_sibling),
    Workload("dma", _dma),
    Workload("irq", _irq),
    Workload("reset", _reset),
    Workload("hotplug", _hotplug),
    Workload("sriov", _sriov, _lacks_vfs),
    Workload("race", _race),
)
WORKLOADS = {workload.name: workload for workload in _TABLE}
ALL = "all"
REPLAY = "replay"
