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

from tests.lab.support import (
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
from tests.lab.test_model import Mistaken, model
from vfiotool.host.era import detect_era
from vfiotool.host.tree import Tree
from vfiotool.stress.action import NOTHING, Action, Outcome, Record
from vfiotool.stress.cast import Cast
from vfiotool.stress.deeds.life_cycle import action_of
from vfiotool.stress.deeds.races import RACE
from vfiotool.stress.model import Bound, Kind, Model
from vfiotool.stress.replay import Finding, bring_to_rest, find, replay, shrunk
from vfiotool.stress.stage import Stage, Unit
from vfiotool.stress.standalone import script
from vfiotool.stress.troupe import PROCESSES
from vfiotool.stress.walk import Walk
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
def unit(request: pytest.FixtureRequest) -> Iterator[Unit]:
    """A group whose members are all on vfio-pci, and afterwards where they were before."""
    members = request.param
    hosts = {address: driver(address) or "" for address in members}
    complaints = kernel_complaints()
    with as_before(*members):
        for address in members:
            to_vfio(address)
        yield Unit(members, hosts)
    assert kernel_complaints() == complaints


@contextlib.contextmanager
def staged(unit: Unit, rules: Model) -> Iterator[Stage]:
    stage = Cast(rules, unit).stage
    with contextlib.closing(stage):
        yield stage


def walked(unit: Unit, rules: Model, seed: int, steps: int = STEPS) -> list[Action]:
    """What a random walk from rest does, by either process."""
    with staged(unit, rules) as stage:
        start = stage.state
    to = [Bound.VFIO, Bound.STUB] + ([Bound.HOST] if all(unit.hosts.values()) else [])
    rng = random.Random(seed)  # noqa: S311 - it is to be the same each time
    walk = Walk(rules, start, seed=seed, to=to)
    return [action_of(operation, rng.randrange(PROCESSES)) for operation, _ in walk.steps(steps)]


both = pytest.mark.parametrize("unit", [(EDU,), E1000_PAIR], ids=["alone", "two"], indirect=True)
alone = pytest.mark.parametrize("unit", [(EDU,)], ids=["alone"], indirect=True)


@both
def test_the_same_seed_does_the_same_and_all_goes_as_told(unit: Unit) -> None:
    actions = walked(unit, model(), seed=3)
    assert actions == walked(unit, model(), seed=3)
    assert actions != walked(unit, model(), seed=4)
    with staged(unit, model()) as stage:
        first, second = (list(replay(stage, actions)) for _ in range(2))
        assert [str(one) for one in first if one.is_unexpected] == []
        assert [one.action for one in first if not one.released][:STEPS] == actions
        assert [(one.action, one.outcome) for one in first] == [(one.action, one.outcome) for one in second]
        assert stage.is_at_rest
    assert {driver(address) for address in unit.members} == {"vfio-pci"}


@alone
def test_what_cannot_be_done_is_left_out(unit: Unit) -> None:
    with staged(unit, model()) as stage:
        records = list(replay(stage, [Action("GET_STATUS"), Action("open group"), Action("GET_STATUS")]))
    assert [one.action.name for one in records] == ["open group", "GET_STATUS", "close group"]


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


@alone
@pytest.mark.parametrize(("mistaken", "got", "least"), MISTAKES, ids=[least[-1] for *_, least in MISTAKES])
def test_a_long_walk_shrinks_to_what_shows_it_and_a_script_shows_it_too(
    unit: Unit, mistaken: Callable[[], Mistaken], got: Outcome, least: list[str], tmp_path: Path
) -> None:
    with staged(unit, mistaken()) as stage:
        found = shrunk(stage, walk_that_finds(stage, unit, got), TRIES)
        assert stage.is_at_rest
    assert found is not None
    assert [action.name for action in found.actions] == least
    assert driver(EDU) == "vfio-pci"
    assert ends_with(1, script(header(unit), found), tmp_path)
    with staged(unit, model()) as stage:
        assert ends_with(0, script(header(unit), elsewhere(replay(stage, found.actions))), tmp_path)
    assert driver(EDU) == "vfio-pci"


@both
def test_a_script_does_a_whole_walk_and_gives_the_devices_back(unit: Unit, tmp_path: Path) -> None:
    with staged(unit, model()) as stage:
        finding = elsewhere(replay(stage, walked(unit, model(), seed=6, steps=120)))
    to_hosts(unit)
    assert any(one.released for one in finding.records)
    assert ends_with(0, script(header(unit), finding), tmp_path)
    assert {address: driver(address) or "" for address in unit.members} == unit.hosts
    assert {read(override(address)) for address in unit.members} == {"(null)"}


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
    unit: Unit, workload: str, names: set[str], tmp_path: Path
) -> None:
    records = [one for seed in range(CYCLES) for one in cycled(unit, workload, seed)]
    assert names <= {one.action.name for one in records}
    with staged(unit, model()) as stage:
        again = list(replay(stage, [one.action for one in records if not one.released]))
    assert [(one.action, one.outcome) for one in again] == [(one.action, one.outcome) for one in records]
    to_hosts(unit)
    assert ends_with(0, script(header(unit), elsewhere(records)), tmp_path)
    assert {address: driver(address) or "" for address in unit.members} == unit.hosts


@both
def test_a_script_does_two_operations_at_once(unit: Unit, tmp_path: Path) -> None:
    """Each is told as one that was found, so that all that the two may give is in the script."""
    with staged(unit, model()) as stage:
        findings = [told for actions in races(unit).values() if (told := told_as_found(stage, actions))]
    of_siblings = SIBLING_RACES[: 1 if is_a_bug() else 2] if all(unit.hosts.values()) else ()
    raced = {str(found.record.action.arguments["of"]) for found in findings if found.record}
    assert raced == {*RACES, *of_siblings}
    to_hosts(unit)
    for finding in findings:
        assert ends_with(0, script(header(unit), finding), tmp_path)
        assert {address: driver(address) or "" for address in unit.members} == unit.hosts


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
    unit: Unit, of: str, kind: Kind, tmp_path: Path
) -> None:
    if of == SIBLING_RACES[1] and is_a_bug():
        pytest.skip("up to 5.18 a host driver that comes to a live group is a BUG")
    with staged(unit, Mistaken(kind, errno=errno.EIO)) as stage:
        found = find(stage, races(unit)[of])
        assert stage.is_at_rest
    assert found is not None
    assert found.record is not None
    assert found.record.action.arguments["of"] == of
    assert found.record.outcome.note.endswith("no order of the two gives that")
    assert ends_with(1, script(header(unit), found), tmp_path)


def is_a_bug() -> bool:
    """Say whether this kernel would not outlive a host driver that takes a member of a live group."""
    return not detect_era(Tree()).has_dma_owner


def races(unit: Unit) -> dict[str, list[Action]]:
    """Each race after what leads to it from rest."""
    cast = Cast(model(), unit)
    found, leading = dict[str, list[Action]](), list[Action]()
    with contextlib.closing(cast.stage):
        for action in cast.races.choose(random.Random(0)):  # noqa: S311 - the same each time
            leading.append(action)
            if action.name == RACE:
                found[str(action.arguments["of"])], leading = leading, []
    return found


def told_as_found(stage: Stage, actions: Sequence[Action]) -> Finding | None:
    """Do what leads to a race, and return that as found otherwise; ``None`` if it cannot be, or must not."""
    *leading, race = actions
    before = [record for one in leading for record in stage.perform(one, NOTHING)]
    expected = stage.expect(race)
    bring_to_rest(stage)
    if expected is None or expected.crash:
        return None
    found = NOTHING._replace(action=race, expected=expected, outcome=Outcome(note="otherwise"))
    return Finding((), (*before, found))


def cycled(unit: Unit, workload: str, seed: int) -> list[Record]:
    """Do one cycle of a workload, as a run does."""
    cast = Cast(model(), unit)
    with contextlib.closing(cast.stage) as stage:
        chosen = WORKLOADS[workload].cycle(cast, random.Random(seed))  # noqa: S311 - the same each time
        return [record for one in chain(chosen, stage.wind_down()) for record in stage.perform(one, NOTHING)]


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


def header(unit: Unit) -> dict[str, Any]:
    era = detect_era(Tree()).value
    units = [{"group": 0, "members": list(unit.members), "hosts": dict(unit.hosts)}]
    return {"kernel": os.uname().release, "era": era, "units": units}


def to_hosts(unit: Unit) -> None:
    """Have all members where they are when nobody has taken them."""
    for address in unit.members:
        write(override(address), "\n")
        write(path(address, "driver/unbind"), address)
    for address in unit.members:
        if host := unit.hosts[address]:
            write(f"{BUS}/drivers/{host}/bind", address)


def walk_that_finds(stage: Stage, unit: Unit, got: Outcome) -> list[Action]:
    """Return a walk in which a mistake first shows by this outcome."""
    for seed in range(100):
        actions = walked(unit, model(), seed)
        first = next((one for one in replay(stage, actions) if one.is_unexpected), None)
        if first is not None and first.outcome == got:
            return actions
    raise AssertionError(f"no walk finds {got}")
