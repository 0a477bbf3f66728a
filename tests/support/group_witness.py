"""Execute calls on a group, and check that exactly the uevents and functions of each record come."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from tests.support.guest import await_, driver, settle, to_vfio
from vfiotool.events.entry import TimelineEntry
from vfiotool.events.probes import ACTIONS, KernelProbes
from vfiotool.events.tracefs import TraceInstance
from vfiotool.events.uevents import Uevents
from vfiotool.host.era import Era
from vfiotool.host.tree import Tree
from vfiotool.stress.group.harness import GroupHarness, OperationFamily
from vfiotool.stress.groups import GroupSpec, running_model
from vfiotool.stress.operations.lifecycle import LifecycleOperations
from vfiotool.stress.record import NOTHING, Call, ExpectedUevent, Record

LATE = 10
_NOTIFIER = "vfio_iommu_group_notifier"
_FUNCTIONS = {"vfio_group_put_bg"} | {
    f"iommu_{what}"
    for what in (
        "group_claim_dma_owner",
        "group_release_dma_owner",
        "device_claim_dma_owner",
        "device_release_dma_owner",
        "device_use_default_domain",
        "device_unuse_default_domain",
    )
}

Uevent = tuple[str, str, str]
"""Subsystem, the device's address or the group's number, and the action."""


class Chooser(Protocol):
    """A family that chooses its calls."""

    def choose(self, rng: random.Random) -> Iterator[Call]:
        """Yield the calls of a cycle."""


class GroupWitness:
    """A group whose members are all on vfio-pci, with the sources of its uevents and functions."""

    def __init__(self, *members: str) -> None:
        tree = Tree()
        hosts = {address: name for address in members if (name := driver(address))}
        for address in members:
            to_vfio(address)
        model = running_model(tree)
        self.harness = GroupHarness(model, GroupSpec(members, hosts))
        self.lifecycle = LifecycleOperations(self.harness)
        self.harness.add(self.lifecycle)
        self.watched = set(members)
        self.done = Counter[str]()
        self._uevents = Uevents("kernel", tree)
        self._probes = KernelProbes(TraceInstance())

    def add(self, family: OperationFamily) -> None:
        """Add a family of operations."""
        self.harness.add(family)

    def cycle(self, chooser: Chooser, seed: int) -> list[Record]:
        """Execute a cycle and the calls that bring the group back to rest."""
        rng = random.Random(seed)  # noqa: S311 - it is to be the same each time
        records = [record for call in chooser.choose(rng) for record in self.perform(call)]
        records += [record for call in self.harness.wind_down() for record in self.perform(call)]
        assert self.harness.is_at_rest
        return records

    def perform(self, call: Call) -> list[Record]:
        """Execute a call, if it is possible, and compare its events with the expectation."""
        number = self.harness.number
        template = NOTHING._replace(call=call)
        records = list(self.harness.perform(call, template))
        for record in records:
            assert not record.is_unexpected, f"{record.call}: {record.outcome}, not {record.expected}"
            self.done[f"{record.call.name}: {record.outcome}"] += 1
        self._compare(str(call), number or 0, records)
        return records

    def forget(self) -> None:
        """Skip all events so far, once udevd is idle: also those that a worker of the kernel causes later."""
        settle()
        for _ in (*self._came(), *self._ran()):
            pass

    def close(self) -> None:
        """Close everything, and check that no unexpected event has come."""
        late = [*self._came(), *self._ran()]
        self.harness.close()
        self._probes.close()
        assert late == []

    def _compare(self, what: str, number: int, records: list[Record]) -> None:
        uevents = [_named(uevent, number) for record in records for uevent in record.expected.uevents]
        names = [name for record in records for name in record.expected.probes if self._is_probed(name)]
        came, ran = list[Uevent](), Counter[str]()

        def is_there() -> bool:
            came.extend(self._came())
            ran.update(self._ran())
            return len(came) >= len(uevents) and ran.total() >= len(names)

        await_(f"{what}: {uevents} and {names}", is_there, LATE)
        if self.harness.model.era is Era.DEFERRED_PUT:  # a worker puts the group: its node has its own order
            came.sort(key=_stream)
            uevents.sort(key=_stream)
        assert came == uevents, what
        assert ran == Counter(names), what

    def _came(self) -> Iterator[Uevent]:
        for entry in self._uevents.read():
            assert entry.event != "missed", entry
            if entry.address is None:
                yield "vfio", str(entry.group), entry.event
            elif entry.address in self.watched:
                yield "vfio-dev" if entry.detail else "pci", entry.address, entry.event

    def _ran(self) -> Iterator[str]:
        for entry in self._probes.read():
            if name := _function(entry):
                yield name

    def _is_probed(self, name: str) -> bool:
        return (_NOTIFIER if name in ACTIONS.values() else name) in self._probes.probed


def _stream(uevent: Uevent) -> tuple[str, str]:
    """Return the subject of a uevent."""
    return uevent[:2]


def _named(uevent: ExpectedUevent, number: int) -> Uevent:
    return uevent.subsystem, str(number) if uevent.address is None else uevent.address, uevent.action


def _function(entry: TimelineEntry) -> str:
    """Return the function that began, or the notifier's action."""
    if entry.event == _NOTIFIER:
        return entry.detail
    return "" if entry.detail.startswith("returns") or entry.event not in _FUNCTIONS else entry.event
