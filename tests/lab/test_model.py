"""Compare the model of a group's life cycle with the kernel: results, uevents and kernel functions."""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support.blocked_programs import UNBIND, comes_to_wait, writing
from tests.support.guest import (
    E1000_PAIR,
    EDU,
    as_before,
    await_,
    driver,
    group,
    kernel_complaints,
    needs_iommu,
    output,
    path,
)
from tests.support.kernel_model import Mistaken, model
from vfiotool.events.entry import TimelineEntry
from vfiotool.events.probes import KernelProbes
from vfiotool.events.tracefs import TraceInstance
from vfiotool.events.uevents import Uevents
from vfiotool.host.era import Era, detect_era
from vfiotool.host.tree import Tree
from vfiotool.stress.group.client import GroupClient
from vfiotool.stress.model.lifecycle import Member, Model, Prediction, State
from vfiotool.stress.model.operation import Bound, Kind, Operation
from vfiotool.stress.model.walk import Walk
from vfiotool.stress.record import ExpectedUevent

pytestmark = [pytest.mark.needs_guest, needs_iommu, pytest.mark.usefixtures("vfio_pci", "stub")]

SECONDS = 30
LATE = 5
NOT_PREDICTED = ("vfio_group_release", "vfio_group_fops_release")  # the last put, whoever has it


@pytest.fixture(scope="module")
def stub() -> None:
    output("modprobe", "pci-stub")


class Witness:
    """Executes a walk, and compares each result, uevent and function with the prediction."""

    def __init__(self, *members: str) -> None:
        tree = Tree()
        self.members = members
        self.hosts = {address: driver(address) or "" for address in members}
        self.number = group(members[0]) or 0
        self.client = GroupClient(self.number, members, self.hosts)
        self.uevents = Uevents("kernel", tree)
        self.era = detect_era(tree)
        self.probes = KernelProbes(TraceInstance())

    @property
    def state(self) -> State:
        """The state before the walk."""
        return State(tuple(Member(Bound.HOST if self.hosts[one] else Bound.NONE) for one in self.members))

    def follow(self, walk: Walk, steps: int) -> Counter[str]:
        """Execute the steps of a walk as predicted; count them by their outcomes."""
        done = Counter[str]()
        for operation, prediction in walk.steps(steps):
            if prediction.waits_for:
                predictions = self.wait(walk, operation)
            else:
                predictions = [self.do(operation, prediction)]
            self.compare(operation, predictions)
            outcome = "waits" if prediction.waits_for else prediction.errno
            done[f"{operation.kind.value}: {outcome}"] += 1
        return done

    def do(self, operation: Operation, prediction: Prediction) -> Prediction:
        """Execute an operation that does not block."""
        assert self.client.do(operation) == (prediction.errno, prediction.flags), str(operation)
        return prediction

    def wait(self, walk: Walk, operation: Operation) -> list[Prediction]:
        """Start an unbind that blocks, and execute the operations that unblock it."""
        address = self.members[operation.member]
        unbind = writing(path(address, "driver/unbind"), address)
        assert comes_to_wait(unbind, UNBIND), str(operation)
        *releases, (_, last) = walk.model.released(walk.state, operation)
        predictions = [self.do(release, prediction) for release, prediction in releases]
        assert unbind.wait(SECONDS) == 0
        return [*predictions, last]

    def compare(self, operation: Operation, predictions: list[Prediction]) -> None:
        """Check that exactly the uevents and functions of a step come."""
        uevents = [self.name(event) for prediction in predictions for event in prediction.uevents]
        names = [name for prediction in predictions for name in prediction.probes if self.is_probed(name)]
        came, ran = list[tuple[str, str | None]](), Counter[str]()

        def is_there() -> bool:
            came.extend(seen(entry) for entry in self.uevents.read() if self.is_ours(entry))
            ran.update(function for entry in self.probes.read() if (function := function_of(entry)))
            return len(came) >= len(uevents) and ran.total() >= len(names)

        # Up to 5.15 a worker puts the group, whose node may go when the unbind has returned.
        await_(f"{operation}: {uevents} and {names}", is_there, LATE)
        if self.era is Era.DEFERRED_PUT:
            came.sort(key=str)
            uevents.sort(key=str)
        assert came == uevents, str(operation)
        assert ran == Counter(names), str(operation)

    def name(self, event: ExpectedUevent) -> tuple[str, str | None]:
        return event.action, None if event.member is None else self.members[event.member]

    def is_ours(self, entry: TimelineEntry) -> bool:
        return entry.address in self.members or (entry.address is None and entry.group == self.number)

    def is_probed(self, name: str) -> bool:
        """Actions are those of the notifier; a function that the compiler has inlined cannot be probed."""
        return name.isupper() or name in self.probes.probed

    def close(self) -> None:
        """Close everything."""
        self.client.close()
        self.probes.close()


def seen(entry: TimelineEntry) -> tuple[str, str | None]:
    return entry.event, entry.address


def function_of(entry: TimelineEntry) -> str:
    """Return the function that began, or the notifier's action."""
    if ":" in entry.event or entry.event in NOT_PREDICTED or entry.detail.startswith("returns"):
        return ""
    if entry.event in ("attach_device_to_domain", "detach_device_from_domain"):
        return ""
    return entry.detail if entry.event == "vfio_iommu_group_notifier" else entry.event


@pytest.fixture(params=[(EDU,), E1000_PAIR], ids=["alone", "two"])
def witness(request: pytest.FixtureRequest) -> Iterator[Witness]:
    complaints = kernel_complaints()
    with as_before(*request.param), contextlib.closing(Witness(*request.param)) as made:
        yield made
    assert kernel_complaints() == complaints


def test_the_kernel_does_what_the_model_says(witness: Witness) -> None:
    to = [Bound.VFIO, Bound.STUB] + ([Bound.HOST] if all(witness.hosts.values()) else [])
    walk = Walk(model(), witness.state, seed=1, to=to)
    done = witness.follow(walk, 300 if len(witness.members) == 1 else 120)
    if len(witness.members) == 1:
        assert {"GET_DEVICE_FD: 0", "close device: 0", "unbind: waits"} < set(done)


@pytest.mark.full
@pytest.mark.parametrize("witness", [(EDU,)], ids=["alone"], indirect=True)
@pytest.mark.parametrize(
    ("mistaken", "found"),
    [
        (lambda: Mistaken(Kind.SET_IOMMU, errno=errno.EBUSY), "SET_IOMMU"),
        (lambda: Mistaken(Kind.GET_STATUS, flags=0), "GET_STATUS"),
        (lambda: Mistaken(Kind.BIND, uevents=()), "bind member 0"),
        (lambda: Mistaken(Kind.OPEN_GROUP, uevents=(ExpectedUevent("vfio", "add"),)), "open group"),
        (lambda: Mistaken(Kind.OPEN_GROUP, probes=("BOUND_DRIVER",)), "open group"),
    ],
    ids=["errno", "flags", "a uevent too many", "a uevent too few", "a function too few"],
)
def test_a_kernel_that_breaks_the_model_is_found(
    witness: Witness, mistaken: Callable[[], Model], found: str
) -> None:
    walk = Walk(mistaken(), witness.state, seed=1, to=[Bound.VFIO, Bound.STUB])
    with pytest.raises((AssertionError, pytest.fail.Exception), match=found):
        witness.follow(walk, 300)
