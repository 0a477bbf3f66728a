"""Hotplug: ``remove`` takes a member off the bus, and ``rescan`` finds it again.

Sources: pci_stop_and_remove_bus_device() in drivers/pci/remove.c, pci_rescan_bus() in drivers/pci/probe.c,
device_add() and device_del() in drivers/base/core.c, vfio_iommu_group_notifier() in drivers/vfio/vfio.c of
5.10.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from vfiotool.host.attributes import DRIVERS, device_path, find_group
from vfiotool.host.era import Era
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import RESCAN_FILE
from vfiotool.stress.model.lifecycle import Member, State
from vfiotool.stress.model.operation import Bound, Kind, Operation, ScriptForm
from vfiotool.stress.operations.base import NonBlockingFamily
from vfiotool.stress.operations.lifecycle import LifecycleOperations, call_of
from vfiotool.stress.record import Call, Expectation, ExpectedUevent, Outcome
from vfiotool.util import kernel_files

REMOVE, RESCAN = "remove", "rescan"

_DRIVER_SECONDS = 10.0
_POLL_SECONDS = 0.001
_UNBINDS_FIRST = 0.25
"""The share of removals before which the device is unbound."""

_UNDONE_BY = {kind.declaration.undoes: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Change:
    """The state after an operation, and what the kernel must do during the operation."""

    state: State
    expected: Expectation


class HotplugOperations(NonBlockingFamily):
    """The operations ``remove``, of one member, and ``rescan``, which finds all removed members.

    A member is removed only if that does not block. Up to 5.18 no member leaves or joins a live group: VFIO
    warns of a member that joins ("Device added to a live group"), and the IOMMU's driver has a BUG when a
    member that left is found again (``domain_context_mapping_one``), even after the group was closed.
    """

    forms: ClassVar[Mapping[str, ScriptForm]] = {
        REMOVE: ScriptForm("remove", ("member",)),
        RESCAN: ScriptForm("rescan"),
    }

    def __init__(self, harness: GroupHarness, lifecycle: LifecycleOperations) -> None:
        self._harness = harness
        self._lifecycle = lifecycle

    def choose(self, rng: random.Random) -> Iterator[Call]:
        """Yield the calls of a cycle: each member is removed and found once, alone or with other members."""
        waiting = rng.sample(range(len(self._members)), len(self._members))
        while waiting:
            count = rng.randint(1, len(waiting))
            gone, waiting = waiting[:count], waiting[count:]
            opened = self._opened(rng) if count < len(self._members) else []
            yield from (call_of(Operation(kind)) for kind in opened)
            for at in gone:
                if rng.random() < _UNBINDS_FIRST:
                    yield call_of(Operation(Kind.UNBIND, member=at))
                yield Call(REMOVE, {"member": at})
            yield Call(RESCAN)
            yield from (call_of(Operation(_UNDONE_BY[kind])) for kind in reversed(opened))
            yield Call(RESCAN)  # if the first rescan was not possible

    def expect(self, call: Call) -> Expectation | None:
        if call.name == RESCAN:
            return self._found().expected if self._can_rescan() else None
        at = int(call.arguments["member"])
        return self._gone(at).expected if self._can_remove(at) else None

    def do(self, call: Call, expected: Expectation) -> Outcome:
        if call.name == RESCAN:
            return self._harness.with_bus_lock(self._rescan)
        at = int(call.arguments["member"])
        return self._harness.with_bus_lock(lambda: self._remove(at))

    def wind_down(self) -> Iterator[Call]:
        """Yield the calls that find removed members; the group may have to be closed first."""
        if self._harness.removed:
            for call in self._lifecycle.wind_down():
                if self._can_rescan():
                    break
                yield call
            yield Call(RESCAN)

    def abandon(self) -> None:
        self._harness.bus.release()

    # For the race of a removal that blocks

    def unblocks_removal(self, at: int) -> Iterator[Call]:
        """Yield the calls that unblock a member's removal; up to 5.18 its group must not be live then."""
        if self._harness.state.is_open and not self._harness.model.era.has_dma_owner:
            yield call_of(Operation(Kind.CLOSE_GROUP))
        unbind = Operation(Kind.UNBIND, member=at)
        for release, _ in self._harness.model.released(self._harness.state, unbind)[:-1]:
            yield call_of(release)

    def record_removal(self, at: int) -> Expectation:
        """Record that a member has been removed, and return the expectation of the removal."""
        change = self._gone(at)
        self._harness.state = change.state
        self._harness.removed.add(at)
        return change.expected

    # Which calls are possible

    def _can_remove(self, at: int) -> bool:
        harness = self._harness
        if at >= len(self._members) or at in harness.removed:
            return False
        member = harness.state.members[at]
        if member.fds or member.cdev or self._gone(at).expected.waits_for:
            return False
        if not harness.model.era.has_dma_owner and (harness.state.is_live or self._is_last(at)):
            return False
        return not harness.tree.exists(f"{device_path(self._members[at])}/virtfn0")

    def _is_last(self, at: int) -> bool:
        """Return True if the group's fd would refer to a group without devices, a state the model lacks."""
        return self._harness.state.is_open and {*self._harness.removed, at} == set(range(len(self._members)))

    def _can_rescan(self) -> bool:
        """After all members were removed, a rescan may give the group another number: all must be closed."""
        harness = self._harness
        if not harness.removed:
            return False
        if len(harness.removed) == len(self._members):
            return harness.state == State(tuple(map(_without_fds, harness.state.members)))
        return harness.model.era.has_dma_owner or not harness.state.is_live

    # Expectations

    def _gone(self, at: int) -> Change:
        """The member loses its driver first, then it leaves its group."""
        harness = self._harness
        state, expected = harness.state, Expectation()
        if state.members[at].bound is not Bound.NONE:
            prediction = harness.model.predict(state, Operation(Kind.UNBIND, member=at))
            state, expected = prediction.state, self._lifecycle.expectation(prediction)
        uevents = (*expected.uevents, ExpectedUevent("pci", "remove", self._members[at]))
        probes = (*expected.probes, *self._notified(state, "DEL_DEVICE"))
        return Change(state, expected._replace(uevents=uevents, probes=probes))

    def _found(self) -> Change:
        """All members join their group before the first gets a driver; a live group refuses a host driver."""
        harness, found = self._harness, sorted(self._harness.removed)
        uevents = [ExpectedUevent("pci", "add", self._members[at]) for at in found]
        probes = [name for _ in found for name in self._notified(harness.state, "ADD_DEVICE")]
        state = harness.state
        for at in filter(self._host, found):
            prediction = harness.model.predict(state, Operation(Kind.BIND, member=at, to=Bound.HOST))
            state, expected = prediction.state, self._lifecycle.expectation(prediction)
            uevents.extend(expected.uevents)
            probes.extend(expected.probes)
        return Change(state, Expectation(uevents=tuple(uevents), probes=tuple(probes)))

    def _notified(self, state: State, name: str) -> tuple[str, ...]:
        """The notifier runs for a group that VFIO knows; up to 5.15 a worker puts the group each time."""
        model = self._harness.model
        if model.era.has_dma_owner or not model.has_node(state):
            return ()
        return (name, "vfio_group_put_bg") if model.era is Era.DEFERRED_PUT else (name,)

    # Execution

    def _remove(self, at: int) -> Outcome:
        code = kernel_files.write(f"{device_path(self._members[at])}/remove", "1")
        if not code:
            self.record_removal(at)
        return Outcome(code)

    def _rescan(self) -> Outcome:
        harness, found = self._harness, sorted(self._harness.removed)
        change = self._found()
        if code := kernel_files.write(RESCAN_FILE, "1"):
            return Outcome(code)
        for at in found:
            bound = change.state.members[at].bound
            if note := self._await_driver(at, self._host(at) if bound is Bound.HOST else None):
                return Outcome(note=note)
        if find_group(harness.tree, self._members[found[0]]) != harness.number:  # no fd is open then
            harness.clients.close()
            harness.open()
        harness.state = change.state
        harness.removed.clear()
        return Outcome()

    def _await_driver(self, at: int, wanted: str | None) -> str:
        """Wait until a member has its driver, which may come after the rescan; return a note if it fails."""
        address, deadline = self._members[at], time.monotonic() + _DRIVER_SECONDS
        if not self._harness.tree.exists(device_path(address)):
            return f"{address} was not found again"
        while (driver := self._harness.tree.find_link(f"{device_path(address)}/driver")) != wanted:
            if driver is not None or time.monotonic() > deadline:
                return f"{address} was found and has the driver {driver}, not {wanted}"
            time.sleep(_POLL_SECONDS)  # the run reads the driver's uevent
        return ""

    def _host(self, at: int) -> str | None:
        """Return the host driver of a member if that driver is loaded: it binds to the member at once."""
        host = self._harness.spec.hosts.get(self._members[at])
        return host if host and os.path.isdir(f"{DRIVERS}/{host}") else None

    def _opened(self, rng: random.Random) -> list[Kind]:
        """Return the opening kinds while members are off the bus: none, the group, or also a container."""
        kinds = [Kind.OPEN_GROUP, Kind.OPEN_CONTAINER, Kind.SET_CONTAINER]
        return kinds[: rng.choice((0, 1, 3))]

    @property
    def _members(self) -> tuple[str, ...]:
        return self._harness.spec.members


def _without_fds(member: Member) -> Member:
    return Member(member.bound)
