"""A group under test: its state, and the execution of calls on the group with their expected results."""

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
    """Operations that belong together, for example all of DMA.

    A run chooses calls, and a replay repeats them: the result of a call depends only on the state of the
    group and of its families.
    """

    forms: ClassVar[Mapping[str, ScriptForm]]
    """The names of the operations, each with its form in a script."""

    def expect(self, call: Call) -> Expectation | None:
        """Return the expectation of a call, or None if the call is not possible in this state."""

    def do(self, call: Call, expected: Expectation) -> Outcome:
        """Execute a call, and record what it changes."""

    def releases(self, call: Call) -> Iterator[Call]:
        """Yield the calls that unblock a call that was started."""

    def finish(self, call: Call) -> Outcome:
        """Return the outcome of a call that blocked, after it was unblocked."""

    def wind_down(self) -> Iterator[Call]:
        """Yield the calls that undo the effects of this family, to bring the group back to rest."""

    def abandon(self) -> None:
        """Close everything that the family has open, after an unexpected outcome."""


class GroupHarness:
    """Executes calls on a group. Not thread-safe.

    At rest, all members are on vfio-pci, and no fd is open. ``state`` is the model's state of the group.
    ``removed`` are the indices of members that are off the bus; ``bus`` is locked while there are any.
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
        """Called with a member before its fds are closed."""
        self.open()

    def add(self, family: OperationFamily) -> None:
        """Add a family of operations. It is wound down before those that were added earlier."""
        self.families.append(family)
        self._by_name |= dict.fromkeys(family.forms, family)

    def open(self) -> None:
        """Read the group's number and state from the kernel: a rescan may change the number."""
        present = [one for one in self.spec.members if self.tree.exists(device_path(one))]
        self.number = find_group(self.tree, present[0]) if present else None
        self.clients = ClientPair(self.number or 0, self.spec.members, self.spec.hosts, self.spec.tokens)
        self.state = State(tuple(Member(self._bound(address)) for address in self.spec.members))
        self.removed = {at for at, address in enumerate(self.spec.members) if address not in present}

    def expect(self, call: Call) -> Expectation | None:
        """Return the expectation of a call, or None if the call is not possible in this state."""
        family = self._by_name.get(call.name)
        return None if family is None else family.expect(call)

    def perform(self, call: Call, template: Record, expected: Expectation | None = None) -> Iterator[Record]:
        """Execute a call and yield its record, or yield nothing if the call is not possible.

        If the call blocks, first yield the records of the calls that unblock it. ``template`` has the fields
        that all records of a cycle share. ``expected`` is the result of ``expect``, if the caller has it.
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
            # The state in which the call goes on decides its uevents and probes.
            proved = outcome.proved or expected
            expected = proved._replace(waits_for=expected.waits_for, pairs=expected.pairs)
        ended = now()
        if (
            expected.allows(outcome) and not template.released
        ):  # a call that still waits may have removed the node
            outcome = outcome._replace(note=note) if (note := self.await_node()) else outcome
        yield template._replace(
            group=group,
            at=begun,
            took_us=(ended - begun) * 1e6,
            call=call,
            expected=expected,
            outcome=outcome,
        )

    def about(self, expected: Expectation) -> set[tuple[int, frozenset[str]]]:
        """Return the groups, with the devices of each, whose events a call may cause."""
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

    def await_node(self) -> str:
        """Wait until the group's node exists, or not, as the model says; return a note if that fails.

        Up to 5.15 a worker of the kernel puts the group, and removes its node, after the system call.
        """
        return self.await_node_of(self.number, exists=self.model.has_node(self.state))

    def await_node_of(self, number: int | None, *, exists: bool) -> str:
        """Wait until the node of a group exists or not; return a note if that fails, else an empty text."""
        if self.model.era is not Era.DEFERRED_PUT or number is None:
            return ""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while os.path.exists(f"/dev/vfio/{number}") != exists:
            if time.monotonic() > deadline:
                state = "still there" if not exists else "not there"
                return f"/dev/vfio/{number} is {state} after {_SETTLE_SECONDS:g} s"
            time.sleep(_POLL_SECONDS)  # the run reads the node's uevent
        return ""

    def with_bus_lock(self, work: Callable[[], Outcome]) -> Outcome:
        """Change the devices on the bus, under the bus lock, which is held while members are off the bus."""
        if (held := self.bus.take()).note:
            return held
        outcome = work()
        if not self.removed:
            self.bus.release()
        return outcome

    def wind_down(self) -> Iterator[Call]:
        """Yield the calls that bring the group back to rest; execute each before taking the next."""
        for family in reversed(self.families):
            yield from family.wind_down()

    @property
    def is_at_rest(self) -> bool:
        """Return True if all members are on vfio-pci, and no fd is open."""
        member = Member(Bound.VFIO)
        return self.state == State((member,) * len(self.spec.members)) and not self.removed

    def abandon(self) -> None:
        """Close everything and read the state from the kernel, after an unexpected outcome."""
        self.close()
        self.open()

    def close(self) -> None:
        """Close all fds. Drivers stay bound."""
        for family in reversed(self.families):
            family.abandon()
        with contextlib.suppress(OSError):
            self.clients.close()

    def announce_close(self, member: int) -> None:
        """Call ``before_close`` for a member."""
        for function in self.before_close:
            function(member)

    def _bound(self, address: str) -> Bound:
        driver = self.tree.find_link(f"{device_path(address)}/driver")
        if driver is None:
            return Bound.NONE
        known = {VFIO: Bound.VFIO, STUB: Bound.STUB}
        return known.get(driver, Bound.HOST)
