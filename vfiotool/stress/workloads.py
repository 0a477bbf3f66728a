"""What a run does in each cycle, by the names of the command line: choosers of actions.

A cycle begins with the stage at rest. Each yields an action, and looks at the stage for the next one when
that was done; who performs them brings the stage to rest afterwards, wherever a cycle ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vfiotool.host.era import Era
from vfiotool.stress.action import Action
from vfiotool.stress.cast import Cast
from vfiotool.stress.deeds.life_cycle import action_of
from vfiotool.stress.model import Bound, Kind, Operation
from vfiotool.stress.troupe import PROCESSES
from vfiotool.stress.walk import choose

_STEPS = 60
"""Operations of a random walk before it goes back to rest."""

Cycle = Callable[[Cast, random.Random], Iterator[Action]]


@dataclass(frozen=True, slots=True)
class Workload:
    """``lacks`` says what a group lacks for it, and nothing where it can be done."""

    name: str
    cycle: Cycle
    lacks: Callable[[Cast], str] = lambda _: ""


def _bind(cast: Cast, rng: random.Random) -> Iterator[Action]:
    """Each member, in any order, to its host driver, where it has one, and back."""
    members = list(range(len(cast.members)))
    for at in rng.sample(members, len(members)):
        yield _action(Kind.UNBIND, at)
        yield _action(Kind.BIND, at, to=_host_of(cast, at))
    for at in rng.sample(members, len(members)):
        yield _action(Kind.UNBIND, at)
        yield _action(Kind.BIND, at, to=Bound.VFIO)


def _group(cast: Cast, rng: random.Random) -> Iterator[Action]:
    """A walk through the model, in which any of the processes opens what is opened."""
    to = [Bound.VFIO, Bound.STUB, *([Bound.HOST] if cast.have_hosts else [])]
    for _ in range(_STEPS):
        operation, _prediction = choose(cast.stage.model, cast.stage.state, rng, to=to)
        yield action_of(operation, rng.randrange(PROCESSES))


def _viability(cast: Cast, rng: random.Random) -> Iterator[Action]:
    """A group is set up while a sibling is on a host driver, on a stub, on none; then one comes."""
    sibling, ours = rng.sample(range(len(cast.members)), 2)
    yield _action(Kind.UNBIND, sibling)
    yield _action(Kind.OPEN_CONTAINER)
    yield _action(Kind.OPEN_GROUP)
    for to in rng.sample([Bound.HOST, Bound.STUB, Bound.NONE], 3):
        if to is not Bound.NONE:
            yield _action(Kind.BIND, sibling, to=to)
        yield _action(Kind.GET_STATUS)
        yield _action(Kind.SET_CONTAINER)
        yield _action(Kind.SET_IOMMU)
        yield _action(Kind.GET_DEVICE_FD, ours)
        yield _action(Kind.GET_STATUS)
        yield _action(Kind.CLOSE_DEVICE, ours)
        yield _action(Kind.UNSET_CONTAINER)
        if to is not Bound.NONE:
            yield _action(Kind.UNBIND, sibling)
    yield from _host_driver_comes(sibling, ours)


def _host_driver_comes(sibling: int, ours: int) -> Iterator[Action]:
    """A host driver takes a member of a live group: EBUSY since 5.19, and a BUG before."""
    yield _action(Kind.SET_CONTAINER)
    yield _action(Kind.SET_IOMMU)
    yield _action(Kind.GET_DEVICE_FD, ours)
    yield _action(Kind.BIND, sibling, to=Bound.HOST)
    yield _action(Kind.BIND, sibling, to=Bound.STUB)


def _dma(cast: Cast, rng: random.Random) -> Iterator[Action]:
    yield from set_up(cast, rng)
    yield from cast.dma.choose(rng)


def _irq(cast: Cast, rng: random.Random) -> Iterator[Action]:
    yield from set_up(cast, rng)
    yield from cast.interrupts.choose(rng)


def _reset(cast: Cast, rng: random.Random) -> Iterator[Action]:
    yield from set_up(cast, rng)
    yield from cast.resets.choose(rng)


def _hotplug(cast: Cast, rng: random.Random) -> Iterator[Action]:
    yield from cast.hotplug.choose(rng)


def _sriov(cast: Cast, rng: random.Random) -> Iterator[Action]:
    yield from cast.vfs.choose(rng)


def _race(cast: Cast, rng: random.Random) -> Iterator[Action]:
    yield from cast.races.choose(rng)


def repetition(cycles: Iterable[Sequence[Action]]) -> Cycle:
    """Return a chooser that yields in its n-th cycle what the n-th of these has."""
    waiting = iter(cycles)
    return lambda _cast, _rng: iter(next(waiting, ()))


def set_up(cast: Cast, rng: random.Random) -> Iterator[Action]:
    """Open a member to the point where it can be used, by its group or by its own node."""
    at = rng.randrange(len(cast.members))
    if cast.stage.model.era is Era.CDEV and rng.random() < 0.5:
        for kind in (Kind.OPEN_CDEV, Kind.BIND_IOMMUFD, Kind.ATTACH_IOMMUFD_PT):
            yield _action(kind, at)
        return
    for kind in (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP, Kind.SET_CONTAINER, Kind.SET_IOMMU):
        yield _action(kind)
    yield _action(Kind.GET_DEVICE_FD, at)


def _action(kind: Kind, member: int = 0, to: Bound = Bound.NONE) -> Action:
    return action_of(Operation(kind, member=member, to=to))


def _host_of(cast: Cast, at: int) -> Bound:
    return Bound.HOST if cast.stage.unit.hosts.get(cast.members[at]) else Bound.STUB


def _lacks_sibling(cast: Cast) -> str:
    if len(cast.members) < 2:
        return "a second device in the group"
    return "" if cast.have_hosts else "a host driver for each device of the group"


def _lacks_vfs(cast: Cast) -> str:
    return "" if cast.vfs.pfs else "a device that can have VFs, on its host driver"


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
