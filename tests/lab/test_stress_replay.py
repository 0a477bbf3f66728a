"""The same operations again, the fewest that show a finding, and a script of them for everyone."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest import (
    BUS,
    E1000_PAIR,
    EDU,
    SUBSYSTEM_NVME,
    as_before,
    command,
    driver,
    kernel_complaints,
    needs_iommu,
    output,
    override,
    path,
    read,
    to_vfio,
    write,
)
from tests.support.kernel_model import Mistaken, model
from vfiotool.host.era import detect_era
from vfiotool.host.tree import Tree
from vfiotool.stress.group.client_pair import PROCESSES
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.groups import GroupSpec
from vfiotool.stress.model.lifecycle import Model
from vfiotool.stress.model.operation import Bound, Kind
from vfiotool.stress.model.walk import Walk
from vfiotool.stress.operations.lifecycle import call_of
from vfiotool.stress.operations.race import RACE
from vfiotool.stress.operations.registry import GroupOperations
from vfiotool.stress.record import NOTHING, Call, Outcome, Record
from vfiotool.stress.reproduce.replay import Finding, bring_to_rest, find, replay, shrunk
from vfiotool.stress.reproduce.script import script
from vfiotool.stress.workloads import WORKLOADS

pytestmark = [pytest.mark.needs_guest, needs_iommu, pytest.mark.usefixtures("vfio_pci", "stub")]

STEPS = 60
TRIES = 200
CYCLES = 3
RACES = ("unbind, open group", "unbind, device fd", "unbind, unbind", "remove, map", "close, reset")
SIBLING_RACES = ("bind sibling, open group", "bind sibling, set container")


@pytest.fixture(scope="module")
def stub() -> None:
    output("modprobe", "pci-stub")


@pytest.fixture
def unit(request: pytest.FixtureRequest) -> Iterator[GroupSpec]:
    """A group whose members are all on vfio-pci, and afterwards where they were before."""
    members = request.param
    hosts = {address: driver(address) or "" for address in members}
    complaints = kernel_complaints()
    with as_before(*members):
        for address in members:
            to_vfio(address)
        yield GroupSpec(members, hosts)
    assert kernel_complaints() == complaints


@contextlib.contextmanager
def group_at_rest(unit: GroupSpec, rules: Model) -> Iterator[GroupHarness]:
    harness = GroupOperations(rules, unit).harness
    with contextlib.closing(harness):
        yield harness


def walked(unit: GroupSpec, rules: Model, seed: int, steps: int = STEPS) -> list[Call]:
    """Return the operations of a random walk from rest, by either process."""
    with group_at_rest(unit, rules) as harness:
        start = harness.state
    to = [Bound.VFIO, Bound.STUB] + ([Bound.HOST] if all(unit.hosts.values()) else [])
    rng = random.Random(seed)  # noqa: S311 - it is to be the same each time
    walk = Walk(rules, start, seed=seed, to=to)
    return [call_of(operation, rng.randrange(PROCESSES)) for operation, _ in walk.steps(steps)]


both = pytest.mark.parametrize(
    "unit",
    [pytest.param((EDU,), id="alone"), pytest.param(E1000_PAIR, id="two", marks=pytest.mark.full)],
    indirect=True,
)
alone = pytest.mark.parametrize("unit", [(EDU,)], ids=["alone"], indirect=True)


@pytest.mark.full
@both
def test_the_same_seed_does_the_same_and_all_goes_as_told(unit: GroupSpec) -> None:
    calls = walked(unit, model(), seed=3)
    assert calls == walked(unit, model(), seed=3)
    assert calls != walked(unit, model(), seed=4)
    with group_at_rest(unit, model()) as harness:
        first, second = (list(replay(harness, calls)) for _ in range(2))
        assert [str(one) for one in first if one.is_unexpected] == []
        assert [one.call for one in first if not one.released][:STEPS] == calls
        assert [(one.call, one.outcome) for one in first] == [(one.call, one.outcome) for one in second]
        assert harness.is_at_rest
    assert {driver(address) for address in unit.members} == {"vfio-pci"}


@alone
def test_what_cannot_be_done_is_left_out(unit: GroupSpec) -> None:
    with group_at_rest(unit, model()) as harness:
        records = list(replay(harness, [Call("GET_STATUS"), Call("open group"), Call("GET_STATUS")]))
    assert [one.call.name for one in records] == ["open group", "GET_STATUS", "close group"]


MISTAKES: list[tuple[Callable[[], Mistaken], Outcome, list[str]]] = [
    (lambda: Mistaken(Kind.GET_STATUS, flags=0), Outcome(0, 1), ["open group", "GET_STATUS"]),
    (
        lambda: Mistaken(Kind.SET_IOMMU, errno=errno.EBUSY),
        Outcome(errno.EINVAL),
        ["open container", "SET_IOMMU"],
    ),
    (
        lambda: Mistaken(Kind.GET_DEVICE_FD, errno=errno.EIO),
        Outcome(0),
        ["open container", "open group", "SET_CONTAINER", "SET_IOMMU", "GET_DEVICE_FD"],
    ),
    (lambda: Mistaken(Kind.CLOSE_CONTAINER, errno=errno.EIO), Outcome(0), ["open container"]),
    (lambda: Mistaken(Kind.BIND, errno=errno.EBUSY), Outcome(0), ["unbind"]),
]


@pytest.mark.full
@alone
@pytest.mark.parametrize(("mistaken", "got", "least"), MISTAKES, ids=[least[-1] for *_, least in MISTAKES])
def test_a_long_walk_shrinks_to_what_shows_it_and_a_script_shows_it_too(
    unit: GroupSpec, mistaken: Callable[[], Mistaken], got: Outcome, least: list[str], tmp_path: Path
) -> None:
    with group_at_rest(unit, mistaken()) as harness:
        found = shrunk(harness, walk_that_finds(harness, unit, got), TRIES)
        assert harness.is_at_rest
    assert found is not None
    assert [call.name for call in found.calls] == least
    assert driver(EDU) == "vfio-pci"
    assert ends_with(1, script(header(unit), found), tmp_path)
    with group_at_rest(unit, model()) as harness:
        assert ends_with(0, script(header(unit), elsewhere(replay(harness, found.calls))), tmp_path)
    assert driver(EDU) == "vfio-pci"


@both
def test_a_script_does_a_whole_walk_and_gives_the_devices_back(unit: GroupSpec, tmp_path: Path) -> None:
    with group_at_rest(unit, model()) as harness:
        finding = elsewhere(replay(harness, walked(unit, model(), seed=6, steps=120)))
    to_hosts(unit)
    assert any(one.released for one in finding.records)
    assert ends_with(0, script(header(unit), finding), tmp_path)
    assert {address: driver(address) or "" for address in unit.members} == unit.hosts
    assert {read(override(address)) for address in unit.members} == {"(null)"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("unit", "workload", "names"),
    [
        ((EDU,), "dma", {"map", "unmap", "unmap all", "pins"}),
        ((EDU,), "irq", {"enable irqs", "trigger irq", "mask irq", "unmask irq", "disable irqs"}),
        ((EDU,), "reset", {"reset", "read config"}),
        (E1000_PAIR, "hotplug", {"remove", "rescan"}),
        ((SUBSYSTEM_NVME,), "sriov", {"vfs", "bind vf", "unbind vf"}),
    ],
    ids=["dma", "irq", "reset", "hotplug", "sriov"],
    indirect=["unit"],
)
def test_a_workload_replays_and_a_script_does_the_same(
    unit: GroupSpec, workload: str, names: set[str], tmp_path: Path
) -> None:
    records = [one for seed in range(CYCLES) for one in cycled(unit, workload, seed)]
    assert names <= {one.call.name for one in records}
    with group_at_rest(unit, model()) as harness:
        again = list(replay(harness, [one.call for one in records if not one.released]))
    assert [(one.call, one.outcome) for one in again] == [(one.call, one.outcome) for one in records]
    to_hosts(unit)
    assert ends_with(0, script(header(unit), elsewhere(records)), tmp_path)
    assert {address: driver(address) or "" for address in unit.members} == unit.hosts


@pytest.mark.full
@both
def test_a_script_does_two_operations_at_once(unit: GroupSpec, tmp_path: Path) -> None:
    """Each race is written as a finding: the script holds every permitted result of both operations."""
    with group_at_rest(unit, model()) as harness:
        findings = [finding for calls in races(unit).values() if (finding := as_finding(harness, calls))]
    of_siblings = SIBLING_RACES[: 1 if is_a_bug() else 2] if all(unit.hosts.values()) else ()
    raced = {str(found.record.call.arguments["of"]) for found in findings if found.record}
    assert raced == {*RACES, *of_siblings}
    to_hosts(unit)
    for finding in findings:
        assert ends_with(0, script(header(unit), finding), tmp_path)
        assert {address: driver(address) or "" for address in unit.members} == unit.hosts


@pytest.mark.full
@pytest.mark.parametrize("unit", [E1000_PAIR], ids=["two"], indirect=True)
@pytest.mark.parametrize(
    ("of", "kind"),
    [
        ("unbind, open group", Kind.OPEN_GROUP),
        ("unbind, device fd", Kind.GET_DEVICE_FD),
        ("bind sibling, open group", Kind.OPEN_GROUP),
        ("bind sibling, set container", Kind.SET_CONTAINER),
    ],
)
def test_two_at_once_that_give_what_no_order_gives_are_found_and_a_script_shows_it(
    unit: GroupSpec, of: str, kind: Kind, tmp_path: Path
) -> None:
    if of == SIBLING_RACES[1] and is_a_bug():
        pytest.skip("up to 5.18 a host driver that comes to a live group is a BUG")
    with group_at_rest(unit, Mistaken(kind, errno=errno.EIO)) as harness:
        found = find(harness, races(unit)[of])
        assert harness.is_at_rest
    assert found is not None
    assert found.record is not None
    assert found.record.call.arguments["of"] == of
    assert found.record.outcome.note.endswith("neither order gives these results")
    assert ends_with(1, script(header(unit), found), tmp_path)


def is_a_bug() -> bool:
    """Say whether this kernel would not outlive a host driver that takes a member of a live group."""
    return not detect_era(Tree()).has_dma_owner


def races(unit: GroupSpec) -> dict[str, list[Call]]:
    """Each race after what leads to it from rest."""
    operations = GroupOperations(model(), unit)
    found, leading = dict[str, list[Call]](), list[Call]()
    with contextlib.closing(operations.harness):
        for call in operations.races.choose(random.Random(0)):  # noqa: S311 - the same each time
            leading.append(call)
            if call.name == RACE:
                found[str(call.arguments["of"])], leading = leading, []
    return found


def as_finding(harness: GroupHarness, calls: Sequence[Call]) -> Finding | None:
    """Do what leads to a race, and return that as found otherwise; ``None`` if it cannot be, or must not."""
    *leading, race = calls
    before = [record for one in leading for record in harness.perform(one, NOTHING)]
    expected = harness.expect(race)
    bring_to_rest(harness)
    if expected is None or expected.crash:
        return None
    found = NOTHING._replace(call=race, expected=expected, outcome=Outcome(note="otherwise"))
    return Finding((), (*before, found))


def cycled(unit: GroupSpec, workload: str, seed: int) -> list[Record]:
    """Do one cycle of a workload, as a run does."""
    operations = GroupOperations(model(), unit)
    with contextlib.closing(operations.harness) as harness:
        chosen = WORKLOADS[workload].cycle(operations, random.Random(seed))  # noqa: S311 - the same each time
        return [
            record for one in chain(chosen, harness.wind_down()) for record in harness.perform(one, NOTHING)
        ]


def elsewhere(records: Iterable[Record]) -> Finding:
    """Return what all went as told here as found on a kernel where the last of it did not."""
    *before, last = records
    assert not any(one.is_unexpected for one in (*before, last))
    return Finding((), (*before, last._replace(outcome=Outcome(errno.ENOTTY))))


def ends_with(status: int, text: str, folder: Path) -> bool:
    """Run a script, as anyone would, and say whether it ends so; what it printed is in a failure's report."""
    file = folder / "script.py"
    file.write_text(text)
    result = command("python3", "-I", str(file))
    print(result.stdout, result.stderr)
    return result.status == status


def header(unit: GroupSpec) -> dict[str, Any]:
    era = detect_era(Tree()).value
    groups = [{"group": 0, "members": list(unit.members), "hosts": dict(unit.hosts)}]
    return {"kernel": os.uname().release, "era": era, "units": groups}


def to_hosts(unit: GroupSpec) -> None:
    """Have all members where they are when nobody has taken them."""
    for address in unit.members:
        write(override(address), "\n")
        write(path(address, "driver/unbind"), address)
    for address in unit.members:
        if host := unit.hosts[address]:
            write(f"{BUS}/drivers/{host}/bind", address)


def walk_that_finds(harness: GroupHarness, unit: GroupSpec, got: Outcome) -> list[Call]:
    """Return a walk in which a mistake first shows by this outcome."""
    for seed in range(100):
        calls = walked(unit, model(), seed)
        first = next((one for one in replay(harness, calls) if one.is_unexpected), None)
        if first is not None and first.outcome == got:
            return calls
    raise AssertionError(f"no walk finds {got}")
