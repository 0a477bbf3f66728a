"""DMA, interrupts and resets under stress: the kernel does what the families expect, or a defect is found."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.guest import (
    E1000_PAIR,
    E1000E,
    EDU,
    NVME,
    as_before,
    kernel_complaints,
    needs_iommu,
    output,
    path,
    to_vfio,
)
from vfiotool._shim import ffi, lib
from vfiotool.host.era import Era
from vfiotool.host.tree import Tree
from vfiotool.pci.capabilities.decoding import decode
from vfiotool.pci.capabilities.standard import Msi, MsiX
from vfiotool.stress.group import sysfs
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.groups import GroupSpec, running_model
from vfiotool.stress.model.dma_mappings import Mappings
from vfiotool.stress.model.operation import Kind, Operation
from vfiotool.stress.operations import irq, reset
from vfiotool.stress.operations.dma import IOVA, SLOT_BYTES, SLOTS, DmaOperations, pinned_pages
from vfiotool.stress.operations.irq import KINDS, IrqOperations
from vfiotool.stress.operations.lifecycle import LifecycleOperations, call_of
from vfiotool.stress.operations.reset import ResetOperations
from vfiotool.stress.record import NOTHING, Call, Record, errno_name
from vfiotool.vfio.nodes import IOMMUFD
from vfiotool.vfio.uapi import DeviceIoctl, IrqSetFlags, PciIrq

pytestmark = [pytest.mark.needs_guest, needs_iommu]

DEVICES = (EDU, E1000E, NVME, *E1000_PAIR)
SLOT_PAGES = SLOT_BYTES // mmap.PAGESIZE
BEYOND = IOVA + SLOTS * SLOT_BYTES
"""An IOVA that no slot has."""

HAS_IOMMUFD = os.path.exists(IOMMUFD)  # its nodes of devices come with the module
BY_GROUP = (Kind.OPEN_CONTAINER, Kind.OPEN_GROUP, Kind.SET_CONTAINER, Kind.SET_IOMMU, Kind.GET_DEVICE_FD)
BY_CDEV = (Kind.OPEN_CDEV, Kind.BIND_IOMMUFD, Kind.ATTACH_IOMMUFD_PT)
WAYS = {"group": BY_GROUP, "cdev": BY_CDEV} if HAS_IOMMUFD else {"group": BY_GROUP}


class GroupUnderTest:
    """A group with these families, and the records of all calls on it."""

    def __init__(self, *members: str) -> None:
        model = running_model(Tree())
        self.harness = GroupHarness(model, GroupSpec(members, {}))
        self.dma, self.interrupts, self.resets = (
            DmaOperations(self.harness),
            IrqOperations(self.harness),
            ResetOperations(self.harness),
        )
        for family in (LifecycleOperations(self.harness), self.dma, self.interrupts, self.resets):
            self.harness.add(family)
        self.records: list[Record] = []

    def do(self, name: str, **arguments: int | str) -> str:
        """Execute a call and return its outcome, or ``not done`` if the call is not possible."""
        records = list(self.harness.perform(Call(name, arguments), NOTHING))
        self.records += records
        return str(records[-1].outcome) if records else "not done"

    def follow(self, calls: Iterator[Call]) -> None:
        """Execute each call before taking the next."""
        for call in calls:
            self.do(call.name, **call.arguments)

    def open(self, *kinds: Kind, member: int = 0, process: int = 0) -> None:
        """Execute operations of the life cycle, which must succeed."""
        for kind in kinds:
            call = call_of(Operation(kind, member=member), process)
            assert self.do(call.name, **call.arguments) in ("0", "not done"), str(call)

    def rest(self) -> None:
        """Bring the group to rest."""
        self.follow(self.harness.wind_down())
        assert self.harness.is_at_rest

    @property
    def unexpected(self) -> list[str]:
        """The unexpected outcomes."""
        return [f"{one.call}: {one.outcome}, not {one.expected}" for one in self.records if one.is_unexpected]

    @property
    def counts(self) -> Counter[str]:
        """The number of records by name and result."""
        return Counter(f"{one.call.name}: {errno_name(one.outcome.errno)}" for one in self.records)


@pytest.fixture(scope="module")
def bound() -> Iterator[None]:
    """Bind all devices to vfio-pci; the kernel must not have logged a complaint in the end."""
    output("modprobe", "vfio-pci")
    complaints = kernel_complaints()
    with as_before(*DEVICES):
        for address in DEVICES:
            to_vfio(address)
        yield
    assert kernel_complaints() == complaints


@pytest.fixture(params=[EDU, E1000E, NVME], ids=["edu", "e1000e", "nvme"])
def group(request: pytest.FixtureRequest, bound: None) -> Iterator[GroupUnderTest]:
    """A group with one device."""
    yield from opened_group(request.param)


@pytest.fixture
def pair(bound: None) -> Iterator[GroupUnderTest]:
    """A group with two devices."""
    yield from opened_group(*E1000_PAIR)


def opened_group(*members: str) -> Iterator[GroupUnderTest]:
    """Yield a group, and check that no page stays pinned and no fd open."""
    before = pinned_pages(), os.listdir("/proc/self/fd")
    group = GroupUnderTest(*members)
    yield group
    group.harness.close()
    assert (pinned_pages(), os.listdir("/proc/self/fd")) == before


on_one = pytest.mark.parametrize("group", [E1000E], ids=["e1000e"], indirect=True)
each_way = pytest.mark.parametrize("way", list(WAYS))


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - it is to be the same each time


# Seeded runs


@each_way
def test_dma_does_what_is_expected(group: GroupUnderTest, way: str) -> None:
    rng = seeded(1)
    for _ in range(6):
        group.open(*WAYS[way])
        group.follow(group.dma.choose(rng))
        group.rest()
        assert group.do("pins") == "0"
    assert group.unexpected == []
    assert group.counts["pins: 0"] == 6 * 12
    assert group.counts.total() > 360
    cut = "unmap: EINVAL" if way == "group" else "unmap: ENOENT"
    assert {"map: 0", "map: EEXIST", "unmap: 0", cut} < set(group.counts)
    assert group.counts["unmap all: EINVAL"] == 0 or group.harness.model.era is Era.DEFERRED_PUT


@each_way
def test_interrupts_do_what_is_expected(group: GroupUnderTest, way: str) -> None:
    rng = seeded(1)
    for _ in range(15):
        group.open(*WAYS[way])
        group.follow(group.interrupts.choose(rng))
        group.rest()
    assert group.unexpected == []
    assert group.counts.total() > 300
    names = ("enable irqs: 0", "enable irqs: EINVAL", "trigger irq: 0", "disable irqs: 0", "mask irq: 0")
    assert {*names, "unmask irq: 0", "mask irq: EINVAL"} < set(group.counts)


@each_way
def test_resets_do_what_is_expected(group: GroupUnderTest, way: str) -> None:
    rng = seeded(1)
    for _ in range(10):
        group.open(*WAYS[way])
        group.do("map", slot=0, slots=2)
        group.follow(group.resets.choose(rng))
        assert group.do("pins") == f"0, {2 * SLOT_PAGES}"
        group.rest()
    assert group.unexpected == []
    has_reset = os.path.exists(path(group.harness.spec.members[0], "reset"))
    assert {group.counts["reset: 0"] > 0, group.counts["reset: EINVAL"] == 0} == {has_reset}
    assert group.counts["trigger irq: 0"] > 0
    assert group.counts["read config: 0"] > 20


@pytest.mark.full
@on_one
def test_the_same_seed_does_the_same(group: GroupUnderTest) -> None:
    runs = []
    for _ in range(2):
        begin, rng = len(group.records), seeded(3)
        group.open(*BY_GROUP)
        for family in (group.dma, group.interrupts, group.resets):
            group.follow(family.choose(rng))
        group.rest()
        runs.append([(one.call, one.outcome) for one in group.records[begin:]])
    assert runs[0] == runs[1]
    assert group.unexpected == []


def test_vectors_are_those_of_configuration_space(group: GroupUnderTest) -> None:
    group.open(*BY_GROUP)
    with open(path(group.harness.spec.members[0], "config"), "rb") as file:
        config = file.read()
    contents = [one.content for one in decode(config)]
    has = {
        "intx": int(config[0x3D] != 0),
        "msi": sum(one.max_count for one in contents if isinstance(one, Msi)),
        "msix": sum(one.count for one in contents if isinstance(one, MsiX)),
    }
    assert {kind: group.interrupts.count(0, kind) for kind in KINDS} == has


# Operations that take a device away


@on_one
@pytest.mark.parametrize("last", [Kind.CLOSE_DEVICE, Kind.CLOSE_GROUP])
def test_mappings_go_with_the_iommu(group: GroupUnderTest, last: Kind) -> None:
    group.open(*BY_GROUP)
    assert group.do("map", slot=0, slots=3) == "0"
    first = Kind.CLOSE_GROUP if last is Kind.CLOSE_DEVICE else Kind.CLOSE_DEVICE
    group.open(first)
    assert group.do("pins") == f"0, {3 * SLOT_PAGES}"
    assert group.do("unmap", slot=0, slots=3) == f"0, {3 * SLOT_BYTES}"
    assert group.do("map", slot=5, slots=1) == "0"
    group.open(last)
    assert group.do("pins") == "0"
    assert group.do("map", slot=0, slots=1) == "not done"
    group.rest()
    group.open(*BY_GROUP)
    assert group.do("map", slot=5, slots=1) == "0"
    assert group.unexpected == []


@on_one
def test_mappings_go_with_the_iommu_before_they_are_read_again(group: GroupUnderTest) -> None:
    group.open(*BY_GROUP)
    group.do("map", slot=0, slots=3)
    again = (Kind.CLOSE_DEVICE, Kind.UNSET_CONTAINER, Kind.SET_CONTAINER, Kind.SET_IOMMU, Kind.GET_DEVICE_FD)
    group.open(*again)
    assert group.do("pins") == "0"
    assert group.do("map", slot=0, slots=3) == "0"
    assert group.do("pins") == f"0, {3 * SLOT_PAGES}"
    assert group.unexpected == []


@on_one
def test_a_container_whose_fd_is_closed_cannot_be_used(group: GroupUnderTest) -> None:
    group.open(*BY_GROUP)
    group.do("map", slot=0, slots=3)
    group.open(Kind.CLOSE_CONTAINER)
    assert group.do("map", slot=0, slots=3) == "not done"
    assert group.do("pins") == "not done"
    assert pinned_pages() == 3 * SLOT_PAGES
    group.rest()
    assert group.do("pins") == "0"
    assert group.unexpected == []


@on_one
@pytest.mark.skipif(not HAS_IOMMUFD, reason="this kernel has no iommufd")
def test_mappings_of_an_ioas_outlive_the_device(group: GroupUnderTest) -> None:
    group.open(*BY_CDEV[:2])
    assert group.do("map", slot=0, slots=3) == "0"
    assert group.do("pins") == "0"
    group.open(BY_CDEV[2])
    assert group.do("pins") == f"0, {3 * SLOT_PAGES}"
    group.open(Kind.CLOSE_CDEV)
    assert group.do("pins") == "0"
    assert group.do("map", slot=0, slots=1) == "EEXIST"
    group.open(*BY_CDEV)
    assert group.do("pins") == f"0, {3 * SLOT_PAGES}"
    assert group.do("map", slot=6, slots=2) == "0"
    assert group.do("unmap", slot=0, slots=7) == "ENOENT"
    assert group.do("pins") == f"0, {2 * SLOT_PAGES}"
    assert group.do("unmap all") == f"0, {2 * SLOT_BYTES}"
    assert group.unexpected == []


@on_one
def test_interrupts_go_with_the_last_fd(group: GroupUnderTest) -> None:
    group.open(*BY_GROUP, Kind.GET_DEVICE_FD)
    assert group.do("enable irqs", member=0, kind="msix", count=2) == "0"
    group.open(Kind.CLOSE_DEVICE)
    assert group.do("trigger irq", member=0, vector=1, times=7) == "0, 7"
    group.open(Kind.CLOSE_DEVICE)
    assert group.do("trigger irq", member=0, vector=1, times=1) == "not done"
    group.open(Kind.GET_DEVICE_FD)
    assert group.do("disable irqs", member=0) == "not done"
    assert group.do("enable irqs", member=0, kind="intx", count=1) == "0"
    assert group.do("mask irq", member=0) == "0"
    assert group.do("reset", member=0) == "0"
    assert group.do("trigger irq", member=0, vector=0, times=2) == "0, 2"
    assert group.unexpected == []


@on_one
def test_fds_of_another_process_are_not_used(group: GroupUnderTest) -> None:
    group.open(*BY_GROUP, process=1)
    for name, arguments in (
        ("map", {"slot": 0, "slots": 1}),
        ("unmap", {"slot": 0, "slots": 1}),
        ("unmap all", {}),
        ("enable irqs", {"member": 0, "kind": "msi", "count": 1}),
        ("mask irq", {"member": 0}),
        ("reset", {"member": 0}),
        ("read config", {"member": 0}),
    ):
        assert group.do(name, **arguments) == "not done"
    assert group.do("pins") == "0"
    group.rest()
    assert group.unexpected == []


def test_members_of_a_group_have_interrupts_of_their_own(pair: GroupUnderTest) -> None:
    pair.open(*BY_GROUP)
    pair.open(Kind.GET_DEVICE_FD, member=1)
    for member in (0, 1):
        assert pair.do("enable irqs", member=member, kind="intx", count=1) == "0"
    assert pair.do("trigger irq", member=1, vector=0, times=3) == "0, 3"
    pair.open(Kind.CLOSE_DEVICE, member=0)
    assert pair.do("trigger irq", member=0, vector=0, times=3) == "not done"
    assert pair.do("trigger irq", member=1, vector=0, times=4) == "0, 4"
    assert pair.unexpected == []


# Faults are found


class Broken:
    """The shim with one function replaced."""

    def __init__(self, name: str, function: Callable[..., int]) -> None:
        self.__dict__[name] = function

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


def elsewhere() -> tuple[mmap.mmap, int]:
    """Return a page of this process, and its address."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    return memory, int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


def map_behind_its_back(fd: int, ioas: int, *arguments: int) -> int:
    """Map the range, and one page more."""
    result = lib.vt_dma_map(fd, ioas, *arguments)
    _memory, address = elsewhere()
    lib.vt_dma_map(fd, ioas, address, BEYOND, mmap.PAGESIZE, 3)
    return result


def unmap_only_once(fd: int, ioas: int, iova: int, size: int) -> int:
    """Return the result of an unmap, and keep the mapping."""
    return size


DMA_DEFECTS: dict[str, tuple[str, Callable[..., int], str]] = {
    "a map that fails": ("vt_dma_map", lambda *_: -errno.ENOMEM, "map slot=1"),
    "a map that does nothing": ("vt_dma_map", lambda *_: 0, "pins"),
    "a page too many": ("vt_dma_map", map_behind_its_back, "pins"),
    "another errno": (
        "vt_dma_map",
        lambda *arguments: lib.vt_dma_map(*arguments) and -errno.EBUSY,
        "map slot=2",
    ),
    "a byte too many": ("vt_dma_unmap", lambda *arguments: lib.vt_dma_unmap(*arguments) + 1, "unmap slot=1"),
    "an unmap that keeps all": ("vt_dma_unmap", unmap_only_once, "pins"),
    "an unmap that is refused": ("vt_dma_unmap", lambda *_: -errno.EINVAL, "unmap slot=1"),
}


@pytest.mark.full
@on_one
@each_way
@pytest.mark.parametrize("defect", list(DMA_DEFECTS))
def test_broken_dma_is_found(
    group: GroupUnderTest, way: str, defect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, function, found = DMA_DEFECTS[defect]
    group.open(*WAYS[way])
    monkeypatch.setattr("vfiotool.stress.operations.dma.lib", Broken(name, function))
    group.do("map", slot=1, slots=2)
    group.do("pins")
    group.do("map", slot=2, slots=1)
    group.do("unmap", slot=1, slots=2)
    group.do("pins")
    assert group.unexpected
    assert group.unexpected[0].startswith(found)


@pytest.mark.full
@on_one
def test_broken_rules_are_found(group: GroupUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mappings, "unmap", lambda self, *_: (errno.ENOENT, []))
    group.open(*BY_GROUP)
    group.do("unmap", slot=0, slots=1)
    assert group.unexpected == ["unmap slot=0 slots=1: 0, not ENOENT"]


def swallow(times: int) -> Callable[..., int]:
    """Return a replacement of ``ioctl`` that loses the first ``times`` interrupts."""
    lost = 0

    def replaced(fd: int, request: DeviceIoctl, argument: bytearray) -> int:
        nonlocal lost
        lost += 1
        return 0 if lost <= times else sysfs.ioctl(fd, request, argument)

    return replaced


@pytest.mark.full
@on_one
def test_a_lost_interrupt_is_found(group: GroupUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    group.open(*BY_GROUP)
    group.do("enable irqs", member=0, kind="msix", count=3)
    monkeypatch.setattr(irq, "ioctl", swallow(1))
    group.do("trigger irq", member=0, vector=2, times=5)
    assert group.unexpected == ["trigger irq member=0 vector=2 times=5: 0, 4, not 0, 5"]


@pytest.mark.full
@on_one
def test_an_interrupt_that_was_read_by_another_is_found(
    group: GroupUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.open(*BY_GROUP)
    group.do("enable irqs", member=0, kind="msi", count=1)
    right = irq._taken

    def taken(fd: int) -> int:
        right(fd)
        return right(fd)

    monkeypatch.setattr(irq, "_taken", taken)
    group.do("trigger irq", member=0, vector=0, times=2)
    assert group.unexpected == ["trigger irq member=0 vector=0 times=2: 0, not 0, 2"]


@pytest.mark.full
@on_one
def test_an_interrupt_that_no_call_triggered_is_found(group: GroupUnderTest) -> None:
    group.open(*BY_GROUP)
    group.do("enable irqs", member=0, kind="msix", count=5)
    fd = group.harness.clients.first.device(0)
    assert fd is not None
    trigger = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER
    irq._set(fd, PciIrq.MSIX, trigger, 4, 1)
    group.do("trigger irq", member=0, vector=3, times=1)
    group.do("disable irqs", member=0)
    assert group.unexpected == ["disable irqs member=0: 0, 1, not 0, 0"]


@pytest.mark.full
@on_one
def test_interrupts_that_were_disabled_by_another_are_found(group: GroupUnderTest) -> None:
    group.open(*BY_GROUP)
    group.do("enable irqs", member=0, kind="msix", count=1)
    fd = group.harness.clients.first.device(0)
    assert fd is not None
    irq._set(fd, PciIrq.MSIX, IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER, 0, 0)
    group.do("trigger irq", member=0, vector=0, times=1)
    assert group.unexpected == ["trigger irq member=0 vector=0 times=1: EINVAL, not 0, 1"]


@pytest.mark.full
@on_one
@pytest.mark.parametrize("code", [errno.EIO, errno.EAGAIN])
def test_a_reset_that_fails_is_found(
    group: GroupUnderTest, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(fd: int, request: DeviceIoctl, argument: bytearray) -> int:
        return -code if request is DeviceIoctl.VFIO_DEVICE_RESET else sysfs.ioctl(fd, request, argument)

    monkeypatch.setattr(reset, "ioctl", replaced)
    group.open(*BY_GROUP)
    group.do("reset", member=0)
    assert group.unexpected == [f"reset member=0: {errno_name(code)}, not 0"]


@pytest.mark.full
@on_one
def test_a_device_that_answers_nothing_is_found(
    group: GroupUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.open(*BY_GROUP)
    monkeypatch.setattr("vfiotool.stress.operations.reset.os.pread", lambda *_: b"\xff" * 4)
    group.do("read config", member=0)
    assert group.unexpected == [f"read config member=0: 0, {0xFFFFFFFF}, not 0, {0x10D38086}"]
