"""Remove and find members, enable and disable VFs, and check what the kernel does each time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import group_witness
from tests.support.group_witness import GroupWitness
from tests.support.guest import (
    E1000_PAIR,
    E1000E,
    EDU,
    NVME,
    SUBSYSTEM_NVME,
    as_before,
    driver,
    group,
    kernel_complaints,
    link,
    needs_iommu,
    output,
    override,
    path,
    read,
)
from vfiotool.stress.group import sysfs
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.group.sysfs import BusLock
from vfiotool.stress.model.operation import Bound, Kind, Operation
from vfiotool.stress.operations.hotplug import HotplugOperations
from vfiotool.stress.operations.lifecycle import LifecycleOperations, call_of
from vfiotool.stress.operations.sriov import SriovOperations
from vfiotool.stress.record import Call, Expectation, ExpectedUevent, Record

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.full,
    needs_iommu,
    pytest.mark.usefixtures("vfio_pci", "stub"),
]

PF = SUBSYSTEM_NVME
RESCAN = Call("rescan")
OPENED = tuple(
    call_of(Operation(kind))
    for kind in (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP, Kind.SET_CONTAINER, Kind.SET_IOMMU)
)


@pytest.fixture(scope="module")
def stub() -> None:
    output("modprobe", "pci-stub")


@contextlib.contextmanager
def watched(*members: str) -> Iterator[GroupWitness]:
    """Watch a group. In the end, its drivers must be as before, and the kernel must have no complaint."""
    complaints, drivers = kernel_complaints(), [driver(one) for one in members]
    with as_before(*members), contextlib.closing(GroupWitness(*members)) as witness:
        yield witness
    assert [driver(one) for one in members] == drivers
    assert kernel_complaints() == complaints


def remove(member: int) -> Call:
    return Call("remove", {"member": member})


def of_pf(count: int) -> Call:
    return Call("vfs", {"member": 0, "count": count})


def of_vf(name: str, vf: int) -> Call:
    return Call(name, {"member": 0, "vf": vf})


def down(witness: GroupWitness) -> list[Record]:
    """Bring the group to rest."""
    return [record for call in witness.harness.wind_down() for record in witness.perform(call)]


# Off the bus and back


@pytest.mark.parametrize(
    "members", [(EDU,), (E1000E,), (NVME,), E1000_PAIR], ids=["edu", "e1000e", "nvme", "two"]
)
def test_members_are_removed_and_found_again(members: tuple[str, ...]) -> None:
    with watched(*members) as witness:
        hotplug = HotplugOperations(witness.harness, witness.lifecycle)
        witness.add(hotplug)
        for seed in range(3):
            witness.cycle(hotplug, seed)
        assert witness.done["remove: 0"] == 3 * len(members)
        assert witness.done["rescan: 0"] >= 3


def test_a_removed_device_is_off_the_bus_and_loses_its_override() -> None:
    with watched(E1000E) as witness:
        witness.add(HotplugOperations(witness.harness, witness.lifecycle))
        assert witness.harness.expect(RESCAN) is None, "nothing was removed"
        assert witness.perform(remove(0))
        assert not os.path.exists(path(E1000E))
        assert witness.harness.removed == {0}
        for call in (remove(0), call_of(Operation(Kind.BIND, to=Bound.VFIO))):
            assert witness.harness.expect(call) is None, "it is off the bus"
        assert witness.perform(RESCAN)
        assert (driver(E1000E), read(override(E1000E))) == ("e1000e", "(null)")
        assert witness.harness.number == group(E1000E)
        assert down(witness)


def test_a_member_of_a_live_group_comes_back_without_a_driver() -> None:
    """Since 5.19 the kernel refuses its host driver. Up to 5.18 it must stay: to find it again is a BUG."""
    with watched(*E1000_PAIR) as witness:
        witness.add(HotplugOperations(witness.harness, witness.lifecycle))
        for call in (*OPENED, call_of(Operation(Kind.GET_DEVICE_FD))):
            assert witness.perform(call)
        assert witness.harness.expect(remove(0)) is None, "its fd is open"
        if witness.harness.model.era.has_dma_owner:
            assert witness.perform(remove(1))
            assert witness.perform(RESCAN)
            assert driver(E1000_PAIR[1]) is None
        else:
            assert witness.harness.expect(remove(1)) is None
        assert "close device" in [record.call.name for record in down(witness)]
        assert witness.harness.is_at_rest


def test_the_last_member_of_an_open_group_is_removed_since_5_19() -> None:
    with watched(EDU) as witness:
        witness.add(HotplugOperations(witness.harness, witness.lifecycle))
        for call in OPENED[:2]:
            assert witness.perform(call)
        if witness.harness.model.era.has_dma_owner:
            assert witness.perform(remove(0))
            assert witness.harness.state.is_orphaned
            assert witness.perform(call_of(Operation(Kind.GET_STATUS)))
            assert witness.harness.expect(RESCAN) is None, "its fd would be of another group"
        else:
            assert witness.harness.expect(remove(0)) is None
        down(witness)
        assert witness.harness.is_at_rest


def test_a_rescan_waits_while_another_process_has_devices_off_the_bus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sysfs, "_BUS_SECONDS", 0.1)
    with watched(EDU) as witness:
        witness.add(HotplugOperations(witness.harness, witness.lifecycle))
        other = BusLock()
        witness.perform(remove(0))
        assert "another process" in other.take().note
        witness.perform(RESCAN)
        assert not other.take().note
        with pytest.raises(AssertionError, match="another process"):
            witness.perform(remove(0))
        other.release()
        down(witness)


# VFs


@pytest.fixture
def witness_of_pf() -> Iterator[GroupWitness]:
    found = (read(path(PF, "sriov_numvfs")), read(path(PF, "sriov_drivers_autoprobe")))
    with watched(PF) as witness:
        yield witness
    assert (read(path(PF, "sriov_numvfs")), read(path(PF, "sriov_drivers_autoprobe"))) == found


def up(witness: GroupWitness, count: int) -> SriovOperations:
    """Enable VFs."""
    vfs = SriovOperations(witness.harness)
    witness.add(vfs)
    witness.watched.update(vfs.addresses)
    for call in (
        call_of(Operation(Kind.UNBIND)),
        call_of(Operation(Kind.BIND, to=Bound.HOST)),
        of_pf(count),
    ):
        assert witness.perform(call)
    return vfs


def test_vfs_are_enabled_bound_and_disabled(witness_of_pf: GroupWitness) -> None:
    vfs = SriovOperations(witness_of_pf.harness)
    witness_of_pf.add(vfs)
    witness_of_pf.watched.update(vfs.addresses)
    assert vfs.pfs == (0,)
    for seed in range(3):
        witness_of_pf.cycle(vfs, seed)
    done = witness_of_pf.done
    assert {"vfs: 0", "vfs: ERANGE", "vfs: EBUSY", "bind vf: 0", "unbind vf: 0"} <= set(done)


def test_vfs_are_where_the_pf_links_them(witness_of_pf: GroupWitness) -> None:
    vfs = up(witness_of_pf, 3)
    assert [link(path(PF, f"virtfn{number}")) for number in range(3)] == list(vfs.addresses[:3])
    assert len(vfs.addresses) == int(read(path(PF, "sriov_totalvfs")) or 0)
    assert read(path(PF, "sriov_drivers_autoprobe")) == "0"
    assert [driver(one) for one in vfs.addresses[:3]] == [None] * 3
    assert witness_of_pf.perform(of_vf("bind vf", 1))
    assert [driver(one) for one in vfs.addresses[:3]] == [None, "vfio-pci", None]
    for call in (of_vf("bind vf", 1), of_vf("bind vf", 3), of_vf("unbind vf", 0), remove(0)):
        assert witness_of_pf.harness.expect(call) is None, str(call)
    assert [record.call for record in down(witness_of_pf)][:2] == [of_vf("unbind vf", 1), of_pf(0)]
    assert link(path(PF, "virtfn0")) is None


def test_vfs_that_are_bound_go_with_their_groups(witness_of_pf: GroupWitness) -> None:
    up(witness_of_pf, 2)
    assert witness_of_pf.perform(of_vf("bind vf", 0))
    (record,) = witness_of_pf.perform(of_pf(0))
    assert ExpectedUevent("pci", "unbind", "0000:01:00.1") in record.expected.uevents
    down(witness_of_pf)


def test_wrong_numbers_of_vfs_and_a_pf_without_its_driver(witness_of_pf: GroupWitness) -> None:
    vfs = SriovOperations(witness_of_pf.harness)
    witness_of_pf.add(vfs)
    assert witness_of_pf.harness.expect(of_pf(1)) is None, "it is on vfio-pci"
    up(witness_of_pf, 1)
    for count in (-1, 65536, 5, 1):
        assert witness_of_pf.perform(of_pf(count))
    down(witness_of_pf)


def test_a_pf_with_vfs_is_not_removed(witness_of_pf: GroupWitness) -> None:
    witness_of_pf.add(HotplugOperations(witness_of_pf.harness, witness_of_pf.lifecycle))
    up(witness_of_pf, 1)
    assert witness_of_pf.harness.expect(remove(0)) is None
    down(witness_of_pf)


def test_abandon_disables_vfs(witness_of_pf: GroupWitness) -> None:
    vfs = up(witness_of_pf, 2)
    witness_of_pf.perform(of_vf("bind vf", 0))
    witness_of_pf.harness.abandon()
    witness_of_pf.forget()
    assert not any(os.path.exists(path(one)) for one in vfs.addresses)
    assert read(path(PF, "sriov_drivers_autoprobe")) == "1"
    assert witness_of_pf.harness.expect(of_pf(0)) == Expectation(), "there are none"
    down(witness_of_pf)


# Wrong expectations must be found


class Mistaken(HotplugOperations):
    """Has wrong expectations of removals."""

    def __init__(self, harness: GroupHarness, lifecycle: LifecycleOperations, **mistakes: Any) -> None:
        super().__init__(harness, lifecycle)
        self._mistakes = mistakes

    def expect(self, call: Call) -> Expectation | None:
        expected = super().expect(call)
        is_removal = expected is not None and call.name == "remove"
        return expected._replace(**self._mistakes) if is_removal and expected else expected


@pytest.mark.parametrize(
    "mistakes",
    [
        {"uevents": ()},
        {"uevents": (ExpectedUevent("pci", "add", EDU),) * 9},
        {"probes": ("iommu_group_claim_dma_owner", "vfio_group_put_bg", "DEL_DEVICE")},
    ],
    ids=["a uevent too few", "a uevent too many", "functions too many"],
)
def test_a_wrong_expectation_is_found(mistakes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_witness, "LATE", 1)
    with watched(EDU) as witness:
        witness.add(Mistaken(witness.harness, witness.lifecycle, **mistakes))
        with pytest.raises((AssertionError, pytest.fail.Exception), match="remove member=0"):
            witness.perform(remove(0))
        witness.forget()
        down(witness)
