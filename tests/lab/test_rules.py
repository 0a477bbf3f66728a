"""Break every rule of the model: stress must find each difference between the kernel and the model.

The kernel cannot be changed, so the expectation is. Each answer of the model is reached on the kernel. Then
the events of the operation are compared with the right expectation, and with expectations that are wrong in
one respect.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.support.guest import E1000_PAIR, EDU, as_before, await_, driver, needs_iommu, output, to_vfio
from vfiotool.events.entry import TimelineEntry
from vfiotool.events.probes import KernelProbes
from vfiotool.events.tracefs import TraceInstance
from vfiotool.events.uevents import Uevents
from vfiotool.host.era import Era
from vfiotool.host.tree import Tree
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.groups import GroupSpec, running_model
from vfiotool.stress.model.lifecycle import Member, Model, Prediction, State
from vfiotool.stress.model.operation import Bound, Kind, Operation
from vfiotool.stress.monitors.probes import ProbeMonitor
from vfiotool.stress.monitors.uevents import UeventMonitor
from vfiotool.stress.operations.lifecycle import LifecycleOperations, call_of
from vfiotool.stress.record import NOTHING, Expectation, ExpectedUevent, Record

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.full,
    needs_iommu,
    pytest.mark.usefixtures("vfio_pci", "stub"),
]

LATE = 10
MOST_FDS = 2
WAITS = "its fds are closed"
UNSEEN = (Kind.OPEN_CONTAINER, Kind.CLOSE_CONTAINER, Kind.OPEN_CDEV)
"""These kinds change only the fds of this process, which no result and no event of the kernel shows."""
WRITES = (Kind.BIND, Kind.UNBIND)


@pytest.fixture(scope="module")
def stub() -> None:
    output("modprobe", "pci-stub")


@dataclass(frozen=True)
class Case:
    """An answer of the model: an operation, its state, and the way from rest to that state."""

    way: tuple[Operation, ...]
    state: State
    operation: Operation
    prediction: Prediction

    def __str__(self) -> str:
        waits = "waits" if self.prediction.waits_for else errno.errorcode.get(self.prediction.errno, "0")
        return f"{self.operation}: {waits}"


Answer = tuple[Kind, Bound, "tuple[object, ...]"]


def visible(prediction: Prediction, *, by_member: bool = True) -> tuple[object, ...]:
    """Return the visible parts of a prediction."""
    members = [event.member if by_member else event.member is None for event in prediction.uevents]
    events = [(event.action, event.subsystem) for event in prediction.uevents]
    return (
        prediction.errno,
        prediction.flags,
        prediction.waits_for,
        *zip(events, members, strict=True),
        *prediction.probes,
    )


def cases(model: Model, start: State, to: Sequence[Bound]) -> Iterator[Case]:
    """Yield each answer of the model once, by the shortest way, except those that crash the machine."""
    ways: dict[State, tuple[Operation, ...]] = {start: ()}
    queue, answers = [start], set[Answer]()
    for state in queue:
        for operation in possible(model, state, to):
            prediction = model.predict(state, operation)
            after = prediction.state
            if prediction.crash or after.device_fds > MOST_FDS:
                continue
            answer = (operation.kind, operation.to, visible(prediction, by_member=False))
            if answer not in answers:
                answers.add(answer)
                yield Case(ways[state], state, operation, prediction)
            if not prediction.waits_for and after not in ways:
                ways[after] = (*ways[state], operation)
                queue.append(after)


def possible(model: Model, state: State, to: Sequence[Bound]) -> Iterator[Operation]:
    return (one for one in model.operations(state) if one.kind is not Kind.BIND or one.to in to)


class GroupOnKernel:
    """A group at rest, and the events that the kernel sends about it."""

    def __init__(self, *members: str) -> None:
        tree = Tree()
        self.members = members
        self.hosts = {address: name for address in members if (name := driver(address))}
        for address in members:
            to_vfio(address)
        self.model = running_model(tree)
        self.start = State((Member(Bound.VFIO),) * len(members))
        self.harness = self.new_harness(self.model)
        self.uevents = Uevents("kernel", tree)
        self.probes = KernelProbes(TraceInstance())

    @property
    def to(self) -> list[Bound]:
        hosts = [Bound.HOST] if len(self.hosts) == len(self.members) else []
        return [Bound.VFIO, Bound.STUB, *hosts]

    def new_harness(self, model: Model) -> GroupHarness:
        harness = GroupHarness(model, GroupSpec(self.members, self.hosts))
        harness.add(LifecycleOperations(harness))
        return harness

    def go(self, harness: GroupHarness, way: Sequence[Operation]) -> None:
        """Execute operations, whose outcomes must be as expected."""
        for operation in way:
            self.do(harness, operation)

    def do(self, harness: GroupHarness, operation: Operation) -> tuple[list[Record], list[TimelineEntry]]:
        """Execute an operation, whose outcome must be as expected; return its records and events."""
        records = list(harness.perform(call_of(operation), NOTHING))
        assert records, f"{operation} cannot be done"
        assert not any(record.is_unexpected for record in records), str(records)
        entries = self.entries(records)
        assert self.findings(records, entries) == [], str(operation)
        return records, entries

    def entries(self, records: Sequence[Record]) -> list[TimelineEntry]:
        """Wait for the expected events of an operation, and return all events."""
        came, events = list[TimelineEntry](), self.events(records)

        def is_there() -> bool:
            fresh = [*self.uevents.read(), *self.probes.read()]
            came.extend(fresh)
            events.see(fresh)
            return events.is_settled

        await_(f"{records[-1].call}", is_there, LATE)
        return came

    def findings(self, records: Sequence[Record], entries: Sequence[TimelineEntry]) -> list[str]:
        """Return the findings of the monitors if the records have the right expectations."""
        events = self.events(records)
        events.see(entries)
        return events.findings()

    def events(self, records: Sequence[Record]) -> ExpectedEvents:
        return ExpectedEvents(
            self.harness.number or 0, self.members, self.model.era, self.probes.probed, records
        )

    def rest(self, harness: GroupHarness) -> None:
        """Bring a group to rest whose state the harness knows."""
        for call in harness.wind_down():
            records = list(harness.perform(call, NOTHING))
            self.entries(records)
        assert harness.is_at_rest

    def recover(self, harness: GroupHarness) -> None:
        """Bring a group to rest whose state the harness does not know, and skip its events."""
        harness.abandon()
        for call in harness.wind_down():
            assert not any(record.is_unexpected for record in harness.perform(call, NOTHING))
        assert harness.is_at_rest
        output("udevadm", "settle")
        for source in (self.uevents, self.probes):
            for _ in source.read():
                pass

    def close(self) -> None:
        """Close everything."""
        self.harness.close()
        self.probes.close()


class ExpectedEvents:
    """The monitors of a run, with the expected uevents and functions of some operations."""

    def __init__(
        self, number: int, members: Sequence[str], era: Era, probed: set[str], records: Sequence[Record]
    ) -> None:
        self._uevents = UeventMonitor(is_ordered=era is not Era.DEFERRED_PUT)
        self._uevents.watch(number, members)
        self._probes = ProbeMonitor(probed, members)
        for record in records:
            self._uevents.expect(number, record.expected.uevents)
            self._probes.expect(record.expected.probes)

    def see(self, entries: Sequence[TimelineEntry]) -> None:
        for entry in entries:
            if entry.source == "probe":
                self._probes.see(entry)
            else:
                self._uevents.see(entry)

    @property
    def is_settled(self) -> bool:
        return self._uevents.is_settled() and self._probes.is_settled()

    def findings(self) -> list[str]:
        self._uevents.finish()
        self._probes.finish()
        # One operation alone need not give back what it claims.
        return [
            *self._uevents.findings(),
            *(one for one in self._probes.findings() if "succeeded" not in one),
        ]


@pytest.fixture(params=[(EDU,), E1000_PAIR], ids=["alone", "two"])
def group(request: pytest.FixtureRequest) -> Iterator[GroupOnKernel]:
    members: tuple[str, ...] = request.param
    with as_before(*members), contextlib.closing(GroupOnKernel(*members)) as made:
        output("udevadm", "settle")
        for source in (made.uevents, made.probes):
            for _ in source.read():
                pass
        yield made


def test_a_wrong_result_of_any_rule_is_found(group: GroupOnKernel) -> None:
    mistakes_found = 0
    for case in cases(group.model, group.start, group.to):
        group.go(group.harness, case.way)
        records, entries = group.do(group.harness, case.operation)
        for what, mistaken in mistakes(records[-1], group):
            misjudged = [*records[:-1], records[-1]._replace(expected=mistaken)]
            found = misjudged[-1].is_unexpected or group.findings(misjudged, entries)
            assert found, f"after {case.way}, {case} with {what}: {records[-1].expected} taken for {mistaken}"
            mistakes_found += 1
        group.rest(group.harness)
    assert mistakes_found > 100


def mistakes(record: Record, group: GroupOnKernel) -> Iterator[tuple[str, Expectation]]:
    """Yield the expectations that are wrong in one respect, each with a description."""
    right = record.expected
    yield "another errno", right._replace(errnos=frozenset((errno.ENOTTY,)))
    if 0 not in right.errnos:
        yield "success", right._replace(errnos=frozenset((0,)))
    if right.value is not None and 0 in right.errnos:
        yield "other flags", right._replace(value=right.value ^ 1)
    for what, uevents in (*_fewer_uevents(right.uevents), *_more_uevents(right.uevents, group)):
        yield f"uevents with {what}", right._replace(uevents=uevents)
    for what, probes in (*_fewer_functions(right.probes, group), *_more_functions(right.probes, group)):
        yield f"functions with {what}", right._replace(probes=probes)


def _fewer_uevents(uevents: tuple[ExpectedUevent, ...]) -> Iterator[tuple[str, tuple[ExpectedUevent, ...]]]:
    for at, uevent in enumerate(uevents):
        yield f"no {uevent}", (*uevents[:at], *uevents[at + 1 :])


def _more_uevents(
    uevents: tuple[ExpectedUevent, ...], group: GroupOnKernel
) -> Iterator[tuple[str, tuple[ExpectedUevent, ...]]]:
    extra = uevents[0] if uevents else ExpectedUevent("pci", "bind", group.members[0])
    yield f"{extra} once more", (*uevents, extra)
    for at, uevent in enumerate(uevents):
        for other in group.members:
            if uevent.address not in (None, other):
                yield (
                    f"{uevent} of {other}",
                    (*uevents[:at], uevent._replace(address=other), *uevents[at + 1 :]),
                )
    # The group's node is only counted, and up to 5.15 a worker sends what is about it.
    ordered = [uevent for uevent in uevents if uevent.subsystem != "vfio"]
    if len(ordered) > 1 and group.model.era is not Era.DEFERRED_PUT:
        yield "another order", uevents[::-1]


def _fewer_functions(probes: tuple[str, ...], group: GroupOnKernel) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Up to 5.15 the notifier may or may not run for a member that was unbound: the monitor allows both."""
    for at, name in enumerate(probes):
        if _is_probed(name, group) and not (group.model.era is Era.DEFERRED_PUT and name == "UNBOUND_DRIVER"):
            yield f"no {name}", (*probes[:at], *probes[at + 1 :])


def _more_functions(probes: tuple[str, ...], group: GroupOnKernel) -> Iterator[tuple[str, tuple[str, ...]]]:
    extra = "iommu_group_claim_dma_owner" if group.model.era.has_dma_owner else "BOUND_DRIVER"
    for name in {extra, *probes}:
        if _is_probed(name, group):
            yield f"{name} once more", (*probes, name)


def _is_probed(name: str, group: GroupOnKernel) -> bool:
    """A function that the compiler has inlined cannot be probed."""
    return name.isupper() or name in group.probes.probed


def test_a_wrong_state_after_any_operation_is_found(group: GroupOnKernel) -> None:
    """If the harness misses a change of state, the outcome of a later operation is unexpected."""
    mistakes_found = 0
    for case in cases(group.model, group.start, group.to):
        after = case.prediction.state
        waits = case.prediction.waits_for  # then more is done before it has come to that state
        if after == case.state or case.operation.kind in UNSEEN or waits:
            continue
        way = distinguishing(group.model, after, case.state, group.to)
        assert way, f"nothing tells that {case} has changed anything"
        group.go(group.harness, case.way)
        group.do(group.harness, case.operation)
        group.harness.state = case.state
        assert found_on(group, way), f"after {case.way}, {case}: {way} did not tell"
        group.recover(group.harness)
        mistakes_found += 1
    assert mistakes_found > 10


def found_on(group: GroupOnKernel, way: Sequence[Operation]) -> bool:
    """Execute operations; return True if the last has an unexpected outcome or event."""
    group.go(group.harness, way[:-1])
    expected = group.harness.expect(call_of(way[-1]))
    assert expected is not None
    records = list(group.harness.perform(call_of(way[-1]), NOTHING, expected))
    if any(record.is_unexpected for record in records):
        return True
    output("udevadm", "settle")
    entries = [*group.uevents.read(), *group.probes.read()]
    return bool(group.findings(records, entries))


def distinguishing(
    model: Model, right: State, wrong: State, to: Sequence[Bound], depth: int = 3
) -> list[Operation]:
    """Return the fewest operations whose outcomes differ between two states."""
    for most in range(depth):
        if way := _distinguishing(model, right, wrong, to, most):
            return way
    return []


def _distinguishing(
    model: Model, right: State, wrong: State, to: Sequence[Bound], more: int
) -> list[Operation]:
    both = set(possible(model, right, to))
    for operation in possible(model, wrong, to):
        mistaken = model.predict(wrong, operation)
        if mistaken.crash:
            continue
        if operation not in both:
            if operation.kind in WRITES:  # sysfs refuses what cannot be done
                return [operation]
            continue
        prediction = model.predict(right, operation)
        if prediction.waits_for or prediction.crash:  # the call would wait for ever
            continue
        if visible(prediction) != visible(mistaken):
            return [operation]
        if (
            more
            and not mistaken.waits_for
            and (way := _distinguishing(model, prediction.state, mistaken.state, to, more - 1))
        ):
            return [operation, *way]
    return []


def test_an_unbind_that_must_wait_and_does_not_is_found(group: GroupOnKernel) -> None:
    unbinds = [
        case for case in cases(group.model, group.start, group.to) if case.operation.kind is Kind.UNBIND
    ]
    for case in unbinds:
        if case.prediction.waits_for:
            continue
        group.go(group.harness, case.way)
        expected = expectation(group, case.operation)._replace(waits_for=WAITS)
        records = list(group.harness.perform(call_of(case.operation), NOTHING, expected))
        assert [str(record.outcome) for record in records] == ["did not wait: 0"]
        group.recover(group.harness)
    assert len(unbinds) > 3


def expectation(group: GroupOnKernel, operation: Operation) -> Expectation:
    expected = group.harness.expect(call_of(operation))
    assert expected is not None
    return expected
