"""Expectations of removals and rescans, also in eras that no kernel of the lab has."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vfiotool.host.era import Era
from vfiotool.host.tree import Tree
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import BusLock
from vfiotool.stress.groups import GroupSpec
from vfiotool.stress.model.lifecycle import ContainerState, Member, Model, State
from vfiotool.stress.model.operation import Bound
from vfiotool.stress.operations.hotplug import HotplugOperations
from vfiotool.stress.operations.lifecycle import LifecycleOperations
from vfiotool.stress.operations.registry import FAMILIES, GroupOperations
from vfiotool.stress.record import Call, Expectation, ExpectedUevent, Outcome

MEMBERS = ("0000:03:01.0", "0000:03:02.0")
BOTH_ON_VFIO = State((Member(Bound.VFIO), Member(Bound.VFIO)))
OPEN = State(BOTH_ON_VFIO.members, is_open=True)
LIVE = State(
    BOTH_ON_VFIO.members, (ContainerState(is_open=True), ContainerState()), is_open=True, container=0
)
FIRST, SECOND = (Call("remove", {"member": at}) for at in range(2))
RESCAN = Call("rescan")
OLD = (Era.DEFERRED_PUT, Era.NOTIFIER)


class AbsentGroup:
    """A group that this machine does not have, in a given state."""

    def __init__(self, root: Path, era: Era, state: State, removed: tuple[int, ...] = ()) -> None:
        self.harness = GroupHarness(Model(era), GroupSpec(MEMBERS, {}))
        self.harness.tree = Tree(str(root))
        self.harness.state, self.harness.removed = state, set(removed)
        self.hotplug = HotplugOperations(self.harness, LifecycleOperations(self.harness))

    def expect(self, call: Call) -> Expectation | None:
        return self.hotplug.expect(call)


@pytest.mark.parametrize(
    ("era", "probes"),
    [
        (
            Era.DEFERRED_PUT,
            tuple(
                name
                for action in ("UNBIND_DRIVER", "UNBOUND_DRIVER", "DEL_DEVICE")
                for name in (action, "vfio_group_put_bg")
            ),
        ),
        (Era.NOTIFIER, ("UNBIND_DRIVER", "UNBOUND_DRIVER", "DEL_DEVICE")),
        (Era.DMA_OWNER, ()),
    ],
)
def test_a_member_loses_its_driver_and_then_leaves(tmp_path: Path, era: Era, probes: tuple[str, ...]) -> None:
    expected = AbsentGroup(tmp_path, era, BOTH_ON_VFIO).expect(SECOND)
    assert expected is not None
    assert expected.probes == probes
    assert expected.uevents == (
        ExpectedUevent("vfio-dev", "remove", MEMBERS[1]),
        ExpectedUevent("pci", "unbind", MEMBERS[1]),
        ExpectedUevent("pci", "remove", MEMBERS[1]),
    )


def test_the_group_goes_with_its_last_member_on_vfio(tmp_path: Path) -> None:
    state = State((Member(Bound.VFIO), Member(Bound.NONE)))
    expected = AbsentGroup(tmp_path, Era.NOTIFIER, state).expect(FIRST)
    assert expected is not None
    assert expected.probes == ("UNBIND_DRIVER",)
    assert ExpectedUevent("vfio", "remove") in expected.uevents


def test_the_notifier_runs_for_a_member_that_joins(tmp_path: Path) -> None:
    state = State((Member(Bound.VFIO), Member()))
    for era, probes in ((Era.NOTIFIER, ("ADD_DEVICE",)), (Era.DMA_OWNER, ())):
        expected = AbsentGroup(tmp_path, era, state, removed=(1,)).expect(RESCAN)
        assert expected == Expectation(uevents=(ExpectedUevent("pci", "add", MEMBERS[1]),), probes=probes)


@pytest.mark.parametrize("era", OLD)
def test_up_to_5_18_no_member_leaves_or_joins_a_live_group(tmp_path: Path, era: Era) -> None:
    assert AbsentGroup(tmp_path, era, OPEN).expect(FIRST) is not None
    assert AbsentGroup(tmp_path, era, LIVE).expect(FIRST) is None
    live_without_one = State((Member(Bound.VFIO), Member()), LIVE.containers, is_open=True, container=0)
    assert AbsentGroup(tmp_path, era, live_without_one, removed=(1,)).expect(RESCAN) is None
    assert AbsentGroup(tmp_path, Era.DMA_OWNER, LIVE).expect(FIRST) is not None
    assert AbsentGroup(tmp_path, Era.DMA_OWNER, live_without_one, removed=(1,)).expect(RESCAN) is not None


@pytest.mark.parametrize("era", OLD)
def test_up_to_5_18_an_open_group_keeps_its_last_device(tmp_path: Path, era: Era) -> None:
    alone = State((Member(Bound.VFIO), Member()), is_open=True)
    assert AbsentGroup(tmp_path, era, alone, removed=(1,)).expect(FIRST) is None
    assert AbsentGroup(tmp_path, Era.DMA_OWNER, alone, removed=(1,)).expect(FIRST) is not None


@pytest.mark.parametrize("era", Era)
def test_calls_that_are_not_possible(tmp_path: Path, era: Era) -> None:
    in_use = State((Member(Bound.VFIO, fds=1), Member(Bound.VFIO, cdev=True)))
    assert [AbsentGroup(tmp_path, era, in_use).expect(one) for one in (FIRST, SECOND, RESCAN)] == [None] * 3
    gone = State((Member(), Member()), (ContainerState(is_open=True), ContainerState()))
    for call in (FIRST, SECOND, RESCAN):  # the group's number may be another one, and its container is open
        assert AbsentGroup(tmp_path, era, gone, removed=(0, 1)).expect(call) is None
    assert AbsentGroup(tmp_path, era, BOTH_ON_VFIO).expect(Call("remove", {"member": 2})) is None


def test_a_pf_with_vfs_is_not_removed(tmp_path: Path) -> None:
    pf = tmp_path / "sys/bus/pci/devices" / MEMBERS[0]
    pf.mkdir(parents=True)
    (pf / "virtfn0").symlink_to("../0000:03:01.1")
    group = AbsentGroup(tmp_path, Era.DMA_OWNER, BOTH_ON_VFIO)
    assert (group.expect(FIRST), group.expect(SECOND) is not None) == (None, True)


def test_up_to_5_18_the_group_is_closed_before_a_removal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group must not be live when the member leaves it."""
    monkeypatch.setattr(BusLock, "take", lambda _: Outcome())
    state = State((Member(Bound.VFIO, fds=1), Member(Bound.VFIO)), LIVE.containers, is_open=True, container=0)
    group = AbsentGroup(tmp_path, Era.DMA_OWNER, state)
    assert [one.name for one in group.hotplug.unblocks_removal(0)] == ["close device"]
    names = [one.name for one in AbsentGroup(tmp_path, Era.NOTIFIER, state).hotplug.unblocks_removal(0)]
    assert names[0] == "close group"


def test_a_seed_gives_the_same_cycle(tmp_path: Path) -> None:
    def cycle(seed: int) -> list[str]:
        group = AbsentGroup(tmp_path, Era.DMA_OWNER, BOTH_ON_VFIO)
        return [str(one) for one in group.hotplug.choose(random.Random(seed))]  # noqa: S311 - not secret

    assert cycle(1) == cycle(1)
    assert len({tuple(cycle(seed)) for seed in range(10)}) > 1
    assert all(cycle(seed).count(f"remove member={at}") == 1 for seed in range(10) for at in range(2))


def test_a_group_has_one_family_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two families of the life cycle would each have a state of their own."""
    made, init = list[LifecycleOperations](), LifecycleOperations.__init__

    def counted(self: LifecycleOperations, harness: GroupHarness) -> None:
        made.append(self)
        init(self, harness)

    monkeypatch.setattr(LifecycleOperations, "__init__", counted)
    operations = GroupOperations(Model(Era.CDEV), GroupSpec(MEMBERS, {}))
    assert made == [operations.lifecycle]
    assert [type(family) for family in operations.harness.families] == list(FAMILIES)
