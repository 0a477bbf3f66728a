"""One group under test: its state, the operations on it, and what each must give."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Protocol

from vfiotool.events.entry import now
from vfiotool.host.attributes import device_path, find_group
from vfiotool.host.era import Era
from vfiotool.host.tree import Tree
from vfiotool.stress.group.client_pair import ClientPair
from vfiotool.stress.group.sysfs import BusLock
from vfiotool.stress.groups import STUB, VFIO, GroupSpec
from vfiotool.stress.model.lifecycle import Member, Model, State
from vfiotool.stress.model.operation import Bound, ScriptForm
from vfiotool.stress.record import Call, Expectation, Outcome, Record

_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.001


class OperationFamily(Protocol):
    """A family of operations. What a run chooses, a replay repeats: all state is here and in the group."""

    forms: ClassVar[Mapping[str, ScriptForm]]
    """The names of the operations, each with its form in a script."""

    def expect(self, call: Call) -> Expectation | None:
        """Say what must come of an action; ``None``, it cannot be done now."""

    def do(self, call: Call, expected: Expectation) -> Outcome:
        """Do it, and take note of what it has changed."""

    def releases(self, call: Call) -> Iterator[Call]:
        """Yield what ends the wait of an action that was begun."""

    def finish(self, call: Call) -> Outcome:
        """Say what came of an action that waited, once nothing keeps it any more."""

    def wind_down(self) -> Iterator[Call]:
        """Yield what brings the group back to rest, as far as this family goes."""

    def abandon(self) -> None:
        """Close what it has open, after something went otherwise than told."""


class GroupHarness:
    """A handle of one thread. At rest all members are on vfio-pci, and nothing is open.

    ``state`` is what the model has; ``removed`` are members that are off the bus, while ``bus`` is locked.
    """

    def __init__(self, model: Model, spec: GroupSpec) -> None:
        self.model = model
        self.spec = spec
        self.tree = Tree()
        self.removed: set[int] = set()
        self.bus = BusLock()
        self.families: list[OperationFamily] = []
        self._by_name: dict[str, OperationFamily] = {}
        self.before_close: list[Callable[[int], None]] = []
        """Called with a member whose fds are closed next."""
        self.open()

    def add(self, family: OperationFamily) -> None:
        """Have a family of operations, which are wound down before those that came earlier."""
        self.families.append(family)
        self._by_name |= dict.fromkeys(family.forms, family)

    def open(self) -> None:
        """Look at the group anew: after a rescan it may have another number."""
        present = [one for one in self.spec.members if self.tree.exists(device_path(one))]
        self.number = find_group(self.tree, present[0]) if present else None
        self.clients = ClientPair(self.number or 0, self.spec.members, self.spec.hosts)
        self.state = State(tuple(Member(self._bound(address)) for address in self.spec.members))
        self.removed = {at for at, address in enumerate(self.spec.members) if address not in present}

    def expect(self, call: Call) -> Expectation | None:
        """Say what must come of an action; ``None``, it cannot be done in this state."""
        family = self._by_name.get(call.name)
        return None if family is None else family.expect(call)

    def perform(self, call: Call, template: Record, expected: Expectation | None = None) -> Iterator[Record]:
        """Do an action that can be done, and yield what came of it: before it what released it, if it waited.

        ``template`` has the fields that all records of a cycle share; ``expected`` is what ``expect`` has
        just said, for who has asked.
        """
        expected = expected or self.expect(call)
        if expected is None:
            return
        family, group, begun = self._by_name[call.name], self.number or 0, now()
        outcome = family.do(call, expected)
        expected = outcome.proved or expected
        if expected.waits_for and expected.allows(outcome):
            for release in family.releases(call):
                yield from self.perform(release, template._replace(released=str(call)))
            outcome = family.finish(call)
            # What follows is decided by the state in which it goes on.
            proved = outcome.proved or expected
            expected = proved._replace(waits_for=expected.waits_for, pairs=expected.pairs)
        ended = now()
        if expected.allows(outcome) and not template.released:  # what still waits may have the node gone
            outcome = outcome._replace(note=note) if (note := self.unsettled()) else outcome
        yield template._replace(
            group=group,
            at=begun,
            took_us=(ended - begun) * 1e6,
            call=call,
            expected=expected,
            outcome=outcome,
        )

    def about(self, expected: Expectation) -> set[tuple[int, frozenset[str]]]:
        """Return the groups, and the devices of each, that may send something once an operation is done."""
        of_nodes = {
            int(uevent.address)
            for uevent in expected.uevents
            if uevent.address and uevent.subsystem == "vfio"
        }
        devices = {
            uevent.address for uevent in expected.uevents if uevent.address and uevent.subsystem != "vfio"
        }
        own = (self.number or 0, frozenset(devices | set(self.spec.members)))
        return {own, *((number, frozenset[str]()) for number in of_nodes)}

    def unsettled(self) -> str:
        """Wait until a worker of the kernel has put the group (up to 5.15); say what did not come to be."""
        return self.unsettled_node(self.number, is_there=self.model.has_node(self.state))

    def unsettled_node(self, number: int | None, *, is_there: bool) -> str:
        """Wait until the node of a group has come, or gone; say what did not come to be."""
        if self.model.era is not Era.DEFERRED_PUT or number is None:
            return ""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while os.path.exists(f"/dev/vfio/{number}") != is_there:
            if time.monotonic() > deadline:
                state = "still there" if not is_there else "not there"
                return f"/dev/vfio/{number} is {state} after {_SETTLE_SECONDS:g} s"
            time.sleep(_POLL_SECONDS)  # the node's uevent is the run's
        return ""

    def alone_on_bus(self, work: Callable[[], Outcome]) -> Outcome:
        """Do what changes what is on the bus, and keep others from it for as long as members are off it."""
        if (held := self.bus.take()).note:
            return held
        outcome = work()
        if not self.removed:
            self.bus.release()
        return outcome

    def wind_down(self) -> Iterator[Call]:
        """Yield what brings it back to rest; each is to be done before the next is asked for."""
        for family in reversed(self.families):
            yield from family.wind_down()

    @property
    def is_at_rest(self) -> bool:
        """Say whether all members are on vfio-pci, and nothing is open."""
        member = Member(Bound.VFIO)
        return self.state == State((member,) * len(self.spec.members)) and not self.removed

    def abandon(self) -> None:
        """Close all, and look at the kernel: for when something went otherwise than the model has it."""
        self.close()
        self.open()

    def close(self) -> None:
        """Close all fds; drivers stay as they are."""
        for family in reversed(self.families):
            family.abandon()
        with contextlib.suppress(OSError):
            self.clients.close()

    def let_go(self, member: int) -> None:
        """Tell all families that the fds of a member are closed next."""
        for stop in self.before_close:
            stop(member)

    def _bound(self, address: str) -> Bound:
        driver = self.tree.find_link(f"{device_path(address)}/driver")
        if driver is None:
            return Bound.NONE
        known = {VFIO: Bound.VFIO, STUB: Bound.STUB}
        return known.get(driver, Bound.HOST)
