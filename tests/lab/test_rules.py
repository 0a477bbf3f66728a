"""Every rule of the model, broken: whatever a kernel did otherwise than the model says, stress would find it.

The kernel cannot be made to do otherwise, so the model is: each of its answers is reached on the kernel, and
is then judged by what a model would say that is mistaken in one respect. All that came of one operation is
judged once for each mistake, and once by what is right.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.lab.support import E1000_PAIR, EDU, as_before, await_, driver, needs_iommu, output, to_vfio
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

pytestmark = [pytest.mark.needs_guest, needs_iommu, pytest.mark.usefixtures("vfio_pci", "stub")]

LATE = 10
MOST_FDS = 2
WAITS = "its fds are closed"
OURS = (Kind.OPEN_CONTAINER, Kind.CLOSE_CONTAINER, Kind.OPEN_CDEV)
"""What they change is which fds we have, and nothing that the kernel would tell anybody."""
WRITES = (Kind.BIND, Kind.UNBIND)


@pytest.fixture(scope="module")
def stub() -> None:
    output("modprobe", "pci-stub")


@dataclass(frozen=True)
class Case:
    """One of the model's answers: an operation, the state that gives it, and how to come there from rest."""

    way: tuple[Operation, ...]
    state: State
    operation: Operation
    prediction: Prediction

    def __str__(self) -> str:
        waits = "waits" if self.prediction.waits_for else errno.errorcode.get(self.prediction.errno, "0")
        return f"{self.operation}: {waits}"


Answer = tuple[Kind, Bound, "tuple[object, ...]"]


def visible(prediction: Prediction, *, by_member: bool = True) -> tuple[object, ...]:
    """What a prediction says that can be seen."""
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
    """Yield each answer of the model once, by the shortest way; what would end the machine is left out."""
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


class Court:
    """A group at rest, and what the kernel sends about it."""

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
        """Do operations that come out as they must."""
        for operation in way:
            self.do(harness, operation)

    def do(self, harness: GroupHarness, operation: Operation) -> tuple[list[Record], list[TimelineEntry]]:
        """Do one that comes out as it must; return its records, and all that came of it."""
        records = list(harness.perform(call_of(operation), NOTHING))
        assert records, f"{operation} cannot be done"
        assert not any(record.is_unexpected for record in records), str(records)
        entries = self.entries(records)
        assert self.findings(records, entries) == [], str(operation)
        return records, entries

    def entries(self, records: Sequence[Record]) -> list[TimelineEntry]:
        """Await what must come of an operation, and return all that came."""
        came, judge = list[TimelineEntry](), self.judge(records)

        def is_there() -> bool:
            fresh = [*self.uevents.read(), *self.probes.read()]
            came.extend(fresh)
            judge.see(fresh)
            return judge.is_settled

        await_(f"{records[-1].call}", is_there, LATE)
        return came

    def findings(self, records: Sequence[Record], entries: Sequence[TimelineEntry]) -> list[str]:
        """Say what the monitors find if this is what must have come."""
        judge = self.judge(records)
        judge.see(entries)
        return judge.findings()

    def judge(self, records: Sequence[Record]) -> Judge:
        return Judge(self.harness.number or 0, self.members, self.model.era, self.probes.probed, records)

    def rest(self, harness: GroupHarness) -> None:
        """Bring a group to rest that the group knows."""
        for call in harness.wind_down():
            records = list(harness.perform(call, NOTHING))
            self.entries(records)
        assert harness.is_at_rest

    def recover(self, harness: GroupHarness) -> None:
        """Bring one to rest that the group knows wrongly, and pass over what comes of it."""
        harness.abandon()
        for call in harness.wind_down():
            assert not any(record.is_unexpected for record in harness.perform(call, NOTHING))
        assert harness.is_at_rest
        output("udevadm", "settle")
        for source in (self.uevents, self.probes):
            for _ in source.read():
                pass

    def close(self) -> None:
        """Close all."""
        self.harness.close()
        self.probes.close()


class Judge:
    """The monitors of a run, told what operations must have sent and run."""

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
def court(request: pytest.FixtureRequest) -> Iterator[Court]:
    members: tuple[str, ...] = request.param
    with as_before(*members), contextlib.closing(Court(*members)) as made:
        output("udevadm", "settle")
        for source in (made.uevents, made.probes):
            for _ in source.read():
                pass
        yield made


def test_an_answer_that_a_kernel_gave_otherwise_would_be_found(court: Court) -> None:
    judged = 0
    for case in cases(court.model, court.start, court.to):
        court.go(court.harness, case.way)
        records, entries = court.do(court.harness, case.operation)
        for what, mistaken in mistakes(records[-1], court):
            misjudged = [*records[:-1], records[-1]._replace(expected=mistaken)]
            found = misjudged[-1].is_unexpected or court.findings(misjudged, entries)
            assert found, f"after {case.way}, {case} with {what}: {records[-1].expected} taken for {mistaken}"
            judged += 1
        court.rest(court.harness)
    assert judged > 100


def mistakes(record: Record, court: Court) -> Iterator[tuple[str, Expectation]]:
    """Yield what a model would say that is wrong in one respect."""
    right = record.expected
    yield "another errno", right._replace(errnos=frozenset((errno.ENOTTY,)))
    if 0 not in right.errnos:
        yield "success", right._replace(errnos=frozenset((0,)))
    if right.value is not None and 0 in right.errnos:
        yield "other flags", right._replace(value=right.value ^ 1)
    for what, uevents in (*_fewer_uevents(right.uevents), *_more_uevents(right.uevents, court)):
        yield f"uevents with {what}", right._replace(uevents=uevents)
    for what, probes in (*_fewer_functions(right.probes, court), *_more_functions(right.probes, court)):
        yield f"functions with {what}", right._replace(probes=probes)


def _fewer_uevents(uevents: tuple[ExpectedUevent, ...]) -> Iterator[tuple[str, tuple[ExpectedUevent, ...]]]:
    for at, uevent in enumerate(uevents):
        yield f"no {uevent}", (*uevents[:at], *uevents[at + 1 :])


def _more_uevents(
    uevents: tuple[ExpectedUevent, ...], court: Court
) -> Iterator[tuple[str, tuple[ExpectedUevent, ...]]]:
    extra = uevents[0] if uevents else ExpectedUevent("pci", "bind", court.members[0])
    yield f"{extra} once more", (*uevents, extra)
    for at, uevent in enumerate(uevents):
        for other in court.members:
            if uevent.address not in (None, other):
                yield (
                    f"{uevent} of {other}",
                    (*uevents[:at], uevent._replace(address=other), *uevents[at + 1 :]),
                )
    # The group's node is only counted, and up to 5.15 a worker sends what is about it.
    ordered = [uevent for uevent in uevents if uevent.subsystem != "vfio"]
    if len(ordered) > 1 and court.model.era is not Era.DEFERRED_PUT:
        yield "another order", uevents[::-1]


def _fewer_functions(probes: tuple[str, ...], court: Court) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Up to 5.15 the notifier may hear of a member that was unbound, or may not: the monitor allows both."""
    for at, name in enumerate(probes):
        if _is_probed(name, court) and not (court.model.era is Era.DEFERRED_PUT and name == "UNBOUND_DRIVER"):
            yield f"no {name}", (*probes[:at], *probes[at + 1 :])


def _more_functions(probes: tuple[str, ...], court: Court) -> Iterator[tuple[str, tuple[str, ...]]]:
    extra = "iommu_group_claim_dma_owner" if court.model.era.has_dma_owner else "BOUND_DRIVER"
    for name in {extra, *probes}:
        if _is_probed(name, court):
            yield f"{name} once more", (*probes, name)


def _is_probed(name: str, court: Court) -> bool:
    """A function that the compiler has inlined cannot be probed."""
    return name.isupper() or name in court.probes.probed


def test_a_state_that_a_kernel_changed_otherwise_would_be_found(court: Court) -> None:
    """The model is mistaken in that nothing changes: an operation comes out otherwise then."""
    judged = 0
    for case in cases(court.model, court.start, court.to):
        after = case.prediction.state
        waits = case.prediction.waits_for  # then more is done before it has come to that state
        if after == case.state or case.operation.kind in OURS or waits:
            continue
        way = telling(court.model, after, case.state, court.to)
        assert way, f"nothing tells that {case} has changed anything"
        court.go(court.harness, case.way)
        court.do(court.harness, case.operation)
        court.harness.state = case.state
        assert found_on(court, way), f"after {case.way}, {case}: {way} did not tell"
        court.recover(court.harness)
        judged += 1
    assert judged > 10


def found_on(court: Court, way: Sequence[Operation]) -> bool:
    """Do operations of which the last must not come out as the group has it."""
    court.go(court.harness, way[:-1])
    expected = court.harness.expect(call_of(way[-1]))
    assert expected is not None
    records = list(court.harness.perform(call_of(way[-1]), NOTHING, expected))
    if any(record.is_unexpected for record in records):
        return True
    output("udevadm", "settle")
    entries = [*court.uevents.read(), *court.probes.read()]
    return bool(court.findings(records, entries))


def telling(model: Model, right: State, wrong: State, to: Sequence[Bound], depth: int = 3) -> list[Operation]:
    """Return the fewest operations that come out otherwise in one state than in another."""
    for most in range(depth):
        if way := _telling(model, right, wrong, to, most):
            return way
    return []


def _telling(model: Model, right: State, wrong: State, to: Sequence[Bound], more: int) -> list[Operation]:
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
        if prediction.waits_for or prediction.crash:  # it would wait for good
            continue
        if visible(prediction) != visible(mistaken):
            return [operation]
        if (
            more
            and not mistaken.waits_for
            and (way := _telling(model, prediction.state, mistaken.state, to, more - 1))
        ):
            return [operation, *way]
    return []


def test_an_unbind_that_did_not_wait_as_it_must_would_be_found(court: Court) -> None:
    unbinds = [
        case for case in cases(court.model, court.start, court.to) if case.operation.kind is Kind.UNBIND
    ]
    for case in unbinds:
        if case.prediction.waits_for:
            continue
        court.go(court.harness, case.way)
        expected = expectation(court, case.operation)._replace(waits_for=WAITS)
        records = list(court.harness.perform(call_of(case.operation), NOTHING, expected))
        assert [str(record.outcome) for record in records] == ["did not wait: 0"]
        court.recover(court.harness)
    assert len(unbinds) > 3


def expectation(court: Court, operation: Operation) -> Expectation:
    expected = court.harness.expect(call_of(operation))
    assert expected is not None
    return expected
