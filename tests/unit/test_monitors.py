"""vfiotool.stress.monitors: what is right is no finding, and what is broken is found, rule by rule."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool.events.entry import TimelineEntry
from vfiotool.host.tree import Tree
from vfiotool.stress.monitors.kernel_log import KernelLogMonitor
from vfiotool.stress.monitors.probes import ProbeMonitor
from vfiotool.stress.monitors.resources import (
    CycleLeakCheck,
    LeakScan,
    Resources,
    leaked,
    read_resources,
    read_taint,
    taint_findings,
)
from vfiotool.stress.monitors.samples import MOST
from vfiotool.stress.monitors.stuck_tasks import StuckTaskMonitor
from vfiotool.stress.monitors.uevents import UeventMonitor
from vfiotool.stress.record import ExpectedUevent
from vfiotool.util.tasks import Task, uninterruptible_tasks

EDU = "0000:00:10.0"
OTHER = "0000:00:11.0"
GROUP = 7

BIND = (
    ExpectedUevent("vfio", "add"),
    ExpectedUevent("vfio-dev", "add", EDU),
    ExpectedUevent("pci", "bind", EDU),
)
UNBIND = (
    ExpectedUevent("vfio-dev", "remove", EDU),
    ExpectedUevent("vfio", "remove"),
    ExpectedUevent("pci", "unbind", EDU),
)
HOST_BIND = (ExpectedUevent("pci", "bind", EDU),)
HOST_UNBIND = (ExpectedUevent("pci", "unbind", EDU),)
CYCLE = (BIND, UNBIND, HOST_BIND, HOST_UNBIND)


# Uevents


def event(uevent: ExpectedUevent, seqnum: int | None = None, group: int = GROUP) -> TimelineEntry:
    """A uevent as the source tells it."""
    details = {"pci": "", "vfio": f"/dev/vfio/{group}", "vfio-dev": "/dev/vfio/devices/vfio0"}
    return TimelineEntry(
        0.0,
        "kernel",
        uevent.action,
        address=uevent.address,
        group=group,
        seqnum=seqnum,
        detail=details[uevent.subsystem],
    )


def watching(*, is_ordered: bool = True) -> UeventMonitor:
    monitor = UeventMonitor(is_ordered=is_ordered)
    monitor.watch(GROUP, [EDU])
    return monitor


def events(cycles: int) -> list[TimelineEntry]:
    """Return the uevents of cycles that are as expected."""
    seqnum = count(100)
    uevents = [uevent for _ in range(cycles) for operation in CYCLE for uevent in operation]
    return [event(uevent, next(seqnum)) for uevent in uevents]


def judge(cycles: int, came: list[TimelineEntry]) -> UeventMonitor:
    """Have what comes of cycles judged."""
    monitor = watching()
    for entry in came:
        monitor.see(entry)
    for _ in range(cycles):
        for operation in CYCLE:
            monitor.expect(GROUP, operation)
    monitor.finish()
    return monitor


def counts(monitor: UeventMonitor) -> dict[str, int]:
    """How many faults of each kind there are, where there are any."""
    found: dict[str, int] = monitor.document()["counts"]
    return {kind: number for kind, number in found.items() if number}


def test_uevents_that_come_as_expected_are_no_finding() -> None:
    monitor = judge(3, events(3))
    assert monitor.findings() == []
    assert monitor.is_settled()
    assert monitor.document() == {
        "expected": 24,
        "received": 24,
        "missing": [],
        "duplicated": [],
        "out_of_order": [],
        "missed": [],
        "counts": {"missing": 0, "duplicated": 0, "out_of_order": 0, "missed": 0},
    }


@pytest.mark.parametrize("place", range(16))
def test_a_uevent_that_is_swallowed(place: int) -> None:
    came = events(2)
    gone = came.pop(place)
    monitor = judge(2, came)
    assert counts(monitor) == {"missing": 1}
    (missing,) = monitor.document()["missing"]
    assert (missing["action"], missing["address"], missing["seqnum"]) == (gone.event, gone.address, None)
    (finding,) = monitor.findings()
    assert finding.endswith(f"did not come, once: {gone.event}")


@pytest.mark.parametrize("place", range(16))
def test_a_uevent_that_comes_twice(place: int) -> None:
    came = events(2)
    came.insert(place, came[place])
    monitor = judge(2, came)
    assert counts(monitor) == {"duplicated": 1}
    (duplicated,) = monitor.document()["duplicated"]
    assert (duplicated["action"], duplicated["address"]) == (came[place].event, came[place].address)
    (finding,) = monitor.findings()
    assert "came again" in finding


@pytest.mark.parametrize(("first", "second"), [(5, 6), (0, 2), (1, 2), (8, 10), (13, 14)])
def test_uevents_that_are_swapped(first: int, second: int) -> None:
    """Within a stream and across them; each has the number that it was sent with."""
    came = events(2)
    early, late = came[second], came[first]
    came[first] = replace(early, seqnum=late.seqnum)
    came[second] = replace(late, seqnum=early.seqnum)
    monitor = judge(2, came)
    assert counts(monitor) == {"out_of_order": 1}
    (swapped,) = monitor.document()["out_of_order"]
    assert (swapped["action"], swapped["address"]) == (early.event, early.address)
    (finding,) = monitor.findings()
    assert "came before what must precede it" in finding


def test_of_a_groups_node_only_the_number_counts() -> None:
    """Another group may have had the number before, and its last uevent be told of later."""
    monitor = watching()
    monitor.see(event(ExpectedUevent("vfio", "remove"), 1))
    monitor.see(event(ExpectedUevent("vfio", "add"), 2))
    monitor.expect(GROUP, [ExpectedUevent("vfio", "add")])
    monitor.expect(GROUP, [ExpectedUevent("vfio", "remove")])
    monitor.finish()
    assert monitor.findings() == []


def test_where_a_worker_puts_groups_streams_have_no_order_among_them() -> None:
    monitor = watching(is_ordered=False)
    for seqnum, uevent in enumerate(reversed(BIND)):
        monitor.see(event(uevent, seqnum))
    monitor.expect(GROUP, BIND)
    monitor.finish()
    assert monitor.findings() == []


def test_a_pair_that_is_lost_makes_no_cascade() -> None:
    """The node of one cycle: what follows goes on matching, an operation too late."""
    came = [entry for place, entry in enumerate(events(50)) if place not in (80, 84)]
    assert came[80].address is not None
    assert counts(judge(50, came)) == {"missing": 2}


def test_a_uevent_that_nobody_expected_is_one_too_many() -> None:
    monitor = judge(1, [*events(1), event(ExpectedUevent("pci", "change", EDU), 999)])
    assert counts(monitor) == {"duplicated": 1}
    assert monitor.document()["duplicated"][0]["seqnum"] == 999


def test_uevents_of_others_are_passed_over() -> None:
    monitor = watching()
    monitor.see(event(ExpectedUevent("pci", "bind", OTHER), 1))
    monitor.see(event(ExpectedUevent("vfio", "add"), 2, group=8))
    monitor.expect(8, [ExpectedUevent("vfio", "add"), ExpectedUevent("pci", "bind", OTHER)])
    assert monitor.is_settled()
    monitor.finish()
    assert monitor.findings() == []
    assert monitor.document()["received"] == 0


def test_uevents_name_the_group_that_a_device_was_in() -> None:
    monitor = watching()
    monitor.watch(8, [EDU, OTHER])
    monitor.expect(GROUP, HOST_BIND)
    monitor.expect(8, [ExpectedUevent("pci", "bind", OTHER)])
    monitor.finish()
    assert [(each["address"], each["group"]) for each in monitor.document()["missing"]] == [
        (EDU, GROUP),
        (OTHER, 8),
    ]


def test_uevents_that_were_lost_before_they_were_read() -> None:
    monitor = watching()
    monitor.see(TimelineEntry(0.0, "kernel", "missed", seqnum=8, detail="uevents 5 to 7"))
    assert counts(monitor) == {"missed": 1}
    assert monitor.findings() == [
        "the kernel's uevents were lost before they were read, once: uevents 5 to 7"
    ]
    assert monitor.document()["missed"] == ["uevents 5 to 7"]


def test_when_nothing_is_outstanding_any_more() -> None:
    monitor = watching()
    assert monitor.is_settled()
    monitor.expect(GROUP, BIND)
    for seqnum, uevent in enumerate(BIND):
        assert not monitor.is_settled()
        monitor.see(event(uevent, seqnum))
    assert monitor.is_settled()
    assert monitor.findings() == []


def test_a_uevent_that_is_swallowed_is_not_waited_for_once_others_came() -> None:
    monitor = watching()
    for _ in range(3):
        monitor.expect(GROUP, HOST_BIND)
        monitor.expect(GROUP, HOST_UNBIND)
    for place, uevent in enumerate((*HOST_BIND, *HOST_UNBIND) * 3):
        if place != 1:
            monitor.see(event(uevent, place))
    assert monitor.is_settled()
    assert counts(monitor) == {"missing": 1}, "before the end, too"


def test_memory_stays_flat() -> None:
    """Neither what never comes nor what nobody expects piles up."""
    monitor = watching()
    for number in range(12_000):
        monitor.expect(GROUP, HOST_BIND)
        monitor.see(event(ExpectedUevent("vfio-dev", "add", EDU), number))
    assert counts(monitor) == {"missing": 2_000, "duplicated": 2_000}
    monitor.finish()
    assert counts(monitor) == {"missing": 12_000, "duplicated": 12_000}
    assert len(monitor.document()["missing"]) == len(monitor.document()["duplicated"]) == MOST


calls = st.lists(st.sampled_from(["add", "bind", "unbind", "remove"]), min_size=1, max_size=40)
alternating = st.integers(1, 40).map(lambda length: (["bind", "unbind"] * length)[:length])


def interleaved(data: st.DataObject, expected: list[str], came: list[str]) -> UeventMonitor:
    """Have one stream judged, whichever side of it is ahead."""
    monitor = watching()
    sides = data.draw(st.permutations([True] * len(expected) + [False] * len(came)))
    wanted, seen = iter(expected), iter(came)
    for is_expected in sides:
        if is_expected:
            monitor.expect(GROUP, [ExpectedUevent("pci", next(wanted), EDU)])
        else:
            monitor.see(event(ExpectedUevent("pci", next(seen), EDU)))
    monitor.finish()
    return monitor


@given(calls | alternating, st.data())
def test_any_interleaving_of_what_is_right_is_no_finding(expected: list[str], data: st.DataObject) -> None:
    assert interleaved(data, expected, expected).findings() == []


@given(calls | alternating, st.data())
def test_one_that_is_dropped_is_one_that_is_missing(expected: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(expected) - 1))
    monitor = interleaved(data, expected, expected[:place] + expected[place + 1 :])
    assert counts(monitor) == {"missing": 1}
    assert monitor.document()["missing"][0]["action"] == expected[place]


@given(calls | alternating, st.data())
def test_one_that_is_doubled_is_one_that_is_duplicated(expected: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(expected) - 1))
    monitor = interleaved(data, expected, expected[: place + 1] + expected[place:])
    assert counts(monitor) == {"duplicated": 1}
    assert monitor.document()["duplicated"][0]["action"] == expected[place]


@given(alternating.filter(lambda expected: len(expected) > 1), st.data())
def test_two_that_are_swapped_are_one_out_of_order(expected: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(expected) - 2))
    came = [*expected[:place], expected[place + 1], expected[place], *expected[place + 2 :]]
    monitor = interleaved(data, expected, came)
    assert counts(monitor) == {"out_of_order": 1}
    assert monitor.document()["out_of_order"][0]["action"] == expected[place + 1]


@given(calls, calls, st.data())
def test_whatever_comes_is_accounted_for(expected: list[str], came: list[str], data: st.DataObject) -> None:
    monitor = interleaved(data, expected, came)
    found = monitor.document()["counts"]
    assert found["missing"] - found["duplicated"] == len(expected) - len(came)
    assert bool(monitor.findings()) == (expected != came)


# Functions of the kernel

NOTIFIER = "vfio_iommu_group_notifier"
CLAIM, RELEASE = "iommu_group_claim_dma_owner", "iommu_group_release_dma_owner"
DEVICE_CLAIM, DEVICE_RELEASE = "iommu_device_claim_dma_owner", "iommu_device_release_dma_owner"
OWNERS = (CLAIM, RELEASE, DEVICE_CLAIM, DEVICE_RELEASE)


def ran(function: str, detail: str = "", address: str | None = None) -> TimelineEntry:
    return TimelineEntry(0.0, "probe", function, address=address, detail=detail)


def claimed(function: str = CLAIM, result: str = "0") -> list[TimelineEntry]:
    return [ran(function), ran(function, f"returns {result}")]


def probed(expected: list[str], seen: list[TimelineEntry], monitor: ProbeMonitor | None = None) -> list[str]:
    """Return the findings."""
    monitor = monitor or ProbeMonitor({*OWNERS, NOTIFIER, "vfio_group_put_bg", "vfio_group_release"})
    monitor.expect(expected)
    for entry in seen:
        monitor.see(entry)
    monitor.finish()
    return monitor.findings()


def test_functions_that_ran_as_the_model_says_are_no_finding() -> None:
    expected = [CLAIM, RELEASE, DEVICE_CLAIM, DEVICE_RELEASE, CLAIM, "BOUND_DRIVER", "vfio_group_put_bg"]
    monitor = ProbeMonitor({*OWNERS, NOTIFIER, "vfio_group_put_bg"})
    seen = [
        *claimed(),
        ran(RELEASE),
        *claimed(DEVICE_CLAIM),
        ran(DEVICE_RELEASE),
        *claimed(CLAIM, "EPERM"),
        ran(NOTIFIER, "BOUND_DRIVER"),
        ran("vfio_group_put_bg"),
        ran("vfio_group_release"),
        ran("attach_device_to_domain", "device=0000:00:10.0"),
    ]
    assert probed(expected, seen, monitor) == []
    assert monitor.document() == {
        "attach_device_to_domain": 1,
        DEVICE_CLAIM: 1,
        DEVICE_RELEASE: 1,
        CLAIM: 2,
        RELEASE: 1,
        "vfio_group_put_bg": 1,
        "vfio_group_release": 1,
        f"{NOTIFIER}:BOUND_DRIVER": 1,
    }


@pytest.mark.parametrize(
    ("expected", "seen", "finding"),
    [
        ([], [ran(RELEASE)], f"{RELEASE} ran once, and must have run 0 times"),
        ([CLAIM, CLAIM, CLAIM], claimed(result="EBUSY"), f"{CLAIM} ran once, and must have run 3 times"),
        (
            ["BOUND_DRIVER"],
            [ran(NOTIFIER, "BOUND_DRIVER")] * 2,
            f"{NOTIFIER} with BOUND_DRIVER ran 2 times, and must have run once",
        ),
        (["vfio_group_put_bg"], [], "vfio_group_put_bg ran 0 times, and must have run once"),
        (
            [],
            [ran(NOTIFIER, "DEL_DEVICE")],
            f"{NOTIFIER} with DEL_DEVICE ran once, and must have run 0 times",
        ),
    ],
    ids=["one too many", "two too few", "an action too many", "no put", "an action unexpected"],
)
def test_functions_that_ran_otherwise(expected: list[str], seen: list[TimelineEntry], finding: str) -> None:
    assert finding in probed(expected, seen)


@pytest.mark.parametrize(("claim", "release"), [(CLAIM, RELEASE), (DEVICE_CLAIM, DEVICE_RELEASE)])
def test_claims_and_releases_must_balance(claim: str, release: str) -> None:
    """Also where the model is as mistaken as the kernel."""
    assert probed([claim, release], [*claimed(claim), ran(release)]) == []
    assert probed([claim], claimed(claim, "EBUSY")) == []
    assert probed([claim], claimed(claim)) == [f"{claim} succeeded once, but {release} ran 0 times"]
    freed = [*claimed(claim), ran(release), ran(release)]
    assert probed([claim, release, release], freed) == [f"{claim} succeeded once, but {release} ran 2 times"]
    assert probed([claim], [ran(claim)]) == [], "its result is not probed"


def test_a_group_may_hear_of_its_last_member_before_a_worker_puts_it() -> None:
    """Up to 5.15, as often as it lost its last member; later no worker is there to be late."""
    put = "vfio_group_put_bg"
    expected = ["UNBIND_DRIVER", put]
    seen = [ran(NOTIFIER, "UNBIND_DRIVER"), ran(put)]
    heard = ran(NOTIFIER, "UNBOUND_DRIVER")
    assert probed(expected, seen) == []
    assert probed(expected, [*seen, heard]) == [], "it was dying"
    assert probed(expected, [*seen, heard, ran(put)]) == []
    assert len(probed(expected, [*seen, heard, ran(put), ran(put)])) == 1
    assert len(probed(expected, [*seen, ran(put)])) == 1
    assert len(probed(expected, [*seen, heard, heard])) == 1
    assert len(probed(expected[:1], [seen[0], heard], ProbeMonitor({NOTIFIER}))) == 1
    stays = [*expected, "UNBOUND_DRIVER", put]
    assert len(probed(stays, [*seen, heard, heard, ran(put)])) == 1
    assert len(probed(stays, [*seen, ran(put)])) == 1


def test_what_is_not_probed_is_not_judged() -> None:
    assert probed([CLAIM, "BOUND_DRIVER"], [], ProbeMonitor({RELEASE})) == []
    grows = {RELEASE}
    monitor = ProbeMonitor(grows)
    grows.add(CLAIM)
    assert len(probed([CLAIM], [], monitor)) == 1


def test_functions_about_devices_of_others_do_not_count() -> None:
    use = "iommu_device_use_default_domain"
    monitor = ProbeMonitor({use, *OWNERS}, addresses=[EDU])
    seen = [ran(use, address=EDU), ran(use, address=OTHER), ran(use), *claimed(), ran(RELEASE)]
    assert probed([use, CLAIM, RELEASE], seen, monitor) == []
    assert monitor.document()[use] == 1


def test_counts_say_nothing_where_events_were_lost() -> None:
    lost = ran("missed", "17 events of the trace buffer")
    (finding,) = probed([CLAIM], [lost])
    assert finding.startswith("events of the trace buffer were lost, once")


def test_counts_say_nothing_before_the_end() -> None:
    monitor = ProbeMonitor(set(OWNERS))
    monitor.expect([CLAIM, "BOUND_DRIVER"])
    assert not monitor.is_settled()
    assert monitor.findings() == []
    monitor.see(ran(CLAIM))
    assert monitor.is_settled()
    monitor.expect([RELEASE])
    monitor.see(ran("missed"))
    assert monitor.is_settled(), "nothing is waited for that may have been lost"


# The kernel's log

LOG = [
    (
        "warning",
        "WARNING: CPU: 1 PID: 642 at drivers/vfio/vfio.c:412 vfio_group_get+0x5a/0x60 [vfio]",
        "vfio_group_get at drivers/vfio/vfio.c:412",
    ),
    (
        "warning",
        "WARNING: drivers/iommu/iommu.c:3199 at iommu_group_release+0x1/0x20, CPU#0: bash/77",
        "iommu_group_release at drivers/iommu/iommu.c:3199",
    ),
    ("bug", "kernel BUG at drivers/vfio/vfio.c:775!", "drivers/vfio/vfio.c:775"),
    ("bug", "BUG: kernel NULL pointer dereference, address: 0000000000000010", ""),
    ("bug", "BUG: unable to handle page fault for address: ffffc90000000000", ""),
    ("bug", "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP PTI", ""),
    ("bug", "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]", ""),
    ("bug", "Oops: 0002 [#1] PREEMPT SMP PTI", ""),
    ("bug", "BUG: Bad page state in process python3  pfn:12345", ""),
    ("bug", "Kernel panic - not syncing: Fatal exception", ""),
    ("lockdep", "WARNING: possible circular locking dependency detected", ""),
    ("lockdep", "WARNING: possible recursive locking detected", ""),
    ("lockdep", "WARNING: inconsistent lock state", ""),
    ("lockdep", "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", ""),
    ("lockdep", "WARNING: suspicious RCU usage", ""),
    ("lockdep", "WARNING: lock held when returning to user space!", ""),
    ("lockdep", "WARNING: bad unlock balance detected!", ""),
    ("lockdep", "[ BUG: Invalid wait context ]", ""),
    ("lockdep", "INFO: lockdep is turned off.", ""),
    ("lockdep", "BUG: MAX_LOCKDEP_CHAINS too low!", ""),
    (
        "kasan",
        "BUG: KASAN: slab-use-after-free in vfio_group_put+0x21/0x80 [vfio]",
        "vfio_group_put",
    ),
    ("kasan", "BUG: KFENCE: use-after-free read in vfio_group_put+0x21/0x80", "vfio_group_put"),
    ("ubsan", "UBSAN: array-index-out-of-bounds in drivers/pci/msi.c:12:3", "drivers/pci/msi.c:12"),
    ("hung task", "INFO: task bash:641 blocked for more than 120 seconds.", ""),
    ("stall", "rcu: INFO: rcu_preempt self-detected stall on CPU", ""),
    ("stall", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", ""),
    ("stall", "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... } 21 jiffies", ""),
    ("stall", "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [bash:641]", ""),
    ("stall", "watchdog: Watchdog detected hard LOCKUP on cpu 1", ""),
    ("leak", "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", ""),
    ("iommu fault", "DMAR: DRHD: handling fault status reg 2", ""),
    (
        "iommu fault",
        "DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x1000 [fault reason 0x06] PTE Read "
        "access is not set",
        "",
    ),
    (
        "iommu fault",
        f"vfio-pci {EDU}: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0002 address=0x1000 flags=0x0000]",
        "",
    ),
    ("refcount", "refcount_t: underflow; use-after-free.", ""),
    (
        "atomic",
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
        "kernel/locking/mutex.c:580",
    ),
    ("atomic", "BUG: scheduling while atomic: bash/641/0x00000002", ""),
]
HARMLESS = [
    f"vfio-pci {EDU}: enabling device (0000 -> 0002)",
    "VFIO - User Level meta-driver version: 0.3",
    "traps: python3[77] general protection fault ip:55d1c0 sp:7ffd10 error:0 in python3.11[55d1]",
    "python3[77]: segfault at 0 ip 000055d1c0 sp 00007ffd10 error 4 in python3.11",
    "[Firmware Bug]: cpu 0, try to use APIC520 (LVT offset 2)",
    "rcu: RCU CPU stall timeout is 60 s",
    "DMAR: Intel(R) Virtualization Technology for Directed I/O",
    "AMD-Vi: Interrupt remapping enabled",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 15669)",
    f"vfio-pci {EDU}: Relaying device request to user (#0)",
    "DEBUG: nothing",
]
NO_CHANNEL = f"vfio-pci {EDU}: No device request channel registered, blocked until released by user"
IN_USE = f'vfio-pci {EDU}: Device is currently in use, task "bash" (641) blocked until device is released'


def logged(*texts: str) -> KernelLogMonitor:
    monitor = KernelLogMonitor()
    for text in texts:
        monitor.see(TimelineEntry(2.5, "kmsg", "warning", detail=text))
    return monitor


@pytest.mark.parametrize(("kind", "text", "where"), LOG, ids=[text[:40] for _, text, _ in LOG])
def test_lines_that_tell_of_a_defect(kind: str, text: str, where: str) -> None:
    monitor = logged(*HARMLESS, text, *HARMLESS)
    assert monitor.document() == [{"kind": kind, "text": text, "at": 2.5, "where": where}]
    (finding,) = monitor.findings()
    assert f"of the kind {kind}{f' in {where}' if where else ''}, once: " in finding
    assert monitor.counts == {kind: 1}


def test_lines_that_tell_of_none() -> None:
    monitor = logged(*HARMLESS)
    assert (monitor.findings(), monitor.document(), monitor.counts) == ([], [], {})


DEATH = (
    "------------[ cut here ]------------",
    "kernel BUG at drivers/vfio/vfio.c:775!",
    "invalid opcode: 0000 [#1] SMP PTI",
    "CPU: 0 PID: 641 Comm: bash Not tainted 5.10.0-46-amd64 #1 Debian 5.10.260-1",
    "Hardware name: QEMU Standard PC (Q35 + ICH9, 2009)",
    "RIP: 0010:vfio_iommu_group_notifier+0x16d/0x180 [vfio]",
    "Code: 00 00 00 0f 0b",
    "Call Trace:",
    " blocking_notifier_call_chain+0x63/0x90",
    "RIP: 0033:0x7f2a60f1ff33",
    "---[ end trace 0123456789abcdef ]---",
    "RIP: 0010:vfio_iommu_group_notifier+0x16d/0x180 [vfio]",
    "Kernel panic - not syncing: Fatal exception",
)


def test_a_death_is_one_finding_that_names_the_function() -> None:
    monitor = logged(*DEATH)
    assert monitor.document() == [
        {
            "kind": "bug",
            "text": "kernel BUG at drivers/vfio/vfio.c:775!",
            "at": 2.5,
            "where": "vfio_iommu_group_notifier at drivers/vfio/vfio.c:775",
        }
    ]


def test_a_fault_names_the_function() -> None:
    monitor = logged(
        "BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "#PF: supervisor read access in kernel mode",
        "Oops: Oops: 0000 [#1] SMP NOPTI",
        "RIP: 0010:vfio_group_put+0x5/0x10 [vfio]",
        "RIP: 0010:another+0x5/0x10",
    )
    assert [line["where"] for line in monitor.document()] == ["vfio_group_put"]


def test_two_deaths_are_two_findings() -> None:
    second = "kernel BUG at drivers/iommu/iommu.c:20!"
    found = logged(*DEATH[:6], second, "RIP: 0010:iommu_detach+0x1/0x2").document()
    assert [line["where"] for line in found] == [
        "vfio_iommu_group_notifier at drivers/vfio/vfio.c:775",
        "iommu_detach at drivers/iommu/iommu.c:20",
    ]
    far = logged(DEATH[1], *["more"] * 60, "Oops: 0002 [#2] SMP", DEATH[5]).document()
    assert [(line["text"][:6], line["where"]) for line in far] == [
        ("kernel", "drivers/vfio/vfio.c:775"),
        ("Oops: ", "vfio_iommu_group_notifier"),
    ]


@pytest.mark.parametrize("text", [NO_CHANNEL, IN_USE])
def test_an_unbind_that_waits_though_it_must_not(text: str) -> None:
    monitor = logged(text)
    assert monitor.findings() == [], "it may be announced yet"
    monitor.finish()
    assert monitor.findings() == [f"an unbind blocked unexpectedly, once: {text}"]
    assert monitor.document() == [{"kind": "blocked", "text": text, "at": 2.5, "where": ""}]


@pytest.mark.parametrize("is_announced_first", [True, False])
def test_unbinds_that_are_meant_to_wait(is_announced_first: bool) -> None:
    monitor = KernelLogMonitor()
    steps: list[Callable[[], None]] = [
        monitor.expect_blocked,
        lambda: monitor.see(TimelineEntry(1.0, "kmsg", "warning", detail=NO_CHANNEL)),
        lambda: monitor.see(TimelineEntry(11.0, "kmsg", "warning", detail=IN_USE)),
    ]
    for step in steps if is_announced_first else reversed(steps):
        step()
    monitor.finish()
    assert (monitor.findings(), monitor.document()) == ([], [])
    assert monitor.counts == {"blocked": 2}
    steps[1]()
    assert len(monitor.findings()) == 1, "one more than was announced"


def test_records_that_were_lost() -> None:
    monitor = KernelLogMonitor()
    monitor.see(TimelineEntry(0.0, "kmsg", "missed", detail="records of the kernel's log"))
    assert monitor.findings() == ["records of the kernel's log were lost before they were read, once"]


def test_a_flood_of_lines_is_counted() -> None:
    monitor = logged(*["WARNING: again"] * 250)
    assert len(monitor.document()) == MOST
    assert monitor.counts == {"warning": 250}
    assert monitor.findings() == [
        "the kernel logged a line of the kind warning, 100 times: WARNING: again",
        "the kernel logged 150 more lines that report a defect",
    ]


# Resources


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with one group that VFIO has, and a process that has its node open."""
    for folder in ("proc/12/fd", "sys/kernel/iommu_groups/7", "dev/vfio/devices", "proc/sys/kernel"):
        (tmp_path / folder).mkdir(parents=True)
    for node in ("dev/vfio/vfio", "dev/vfio/7", "dev/vfio/devices/vfio0", "proc/12/fd/0", "proc/12/fd/1"):
        (tmp_path / node).touch()
    (tmp_path / "proc/12/status").write_text("Name:\tpython3\nVmLck:\t       4 kB\nVmPin:\t      16 kB\n")
    (tmp_path / "proc/sys/kernel/tainted").write_text("512\n")
    return tmp_path


def resources(machine: Path, *pids: int) -> Resources:
    return read_resources(pids or (12,), Tree(str(machine)))


def test_what_there_is(machine: Path) -> None:
    found = resources(machine, 12, 13)
    assert found.document() == {
        "fds": {"12": 2},
        "VmPin": 16,
        "VmLck": 4,
        "groups": 1,
        "group_nodes": ["/dev/vfio/7", "/dev/vfio/devices/vfio0"],
    }
    assert leaked(found, resources(machine, 12)) == []
    assert read_taint(Tree(str(machine))) == 512


def test_a_machine_without_vfio(tmp_path: Path) -> None:
    assert read_resources(tree=Tree(str(tmp_path))) == Resources((), 0, 0, 0, ())


def test_a_process_whose_folder_cannot_be_read(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tree: Tree, path: str) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(Tree, "names", refuse)
    with pytest.raises(PermissionError):
        resources(machine)


def leak_fd(machine: Path) -> None:
    (machine / "proc/12/fd/2").touch()


def leak_pages(machine: Path) -> None:
    (machine / "proc/12/status").write_text("VmLck:\t       4 kB\nVmPin:\t      24 kB\n")


def leak_lock(machine: Path) -> None:
    (machine / "proc/12/status").write_text("VmLck:\t       8 kB\nVmPin:\t      16 kB\n")


def leave_node(machine: Path) -> None:
    (machine / "dev/vfio/8").touch()


def lose_node(machine: Path) -> None:
    (machine / "dev/vfio/devices/vfio0").unlink()


def leave_group(machine: Path) -> None:
    (machine / "sys/kernel/iommu_groups/8").mkdir()


@pytest.mark.parametrize(
    ("breaks", "finding"),
    [
        (leak_fd, "process 12 has 3 fds, and had 2"),
        (leak_pages, "8 kB of memory stay pinned (VmPin): 24 kB, and 16 kB before"),
        (leak_lock, "4 kB of memory stay locked (VmLck): 8 kB, and 4 kB before"),
        (leave_node, "the node /dev/vfio/8 is left"),
        (lose_node, "the node /dev/vfio/devices/vfio0 is gone"),
        (leave_group, "the machine has 2 IOMMU groups, and had 1"),
    ],
)
def test_what_is_left(machine: Path, breaks: Callable[[Path], None], finding: str) -> None:
    before = resources(machine)
    breaks(machine)
    assert leaked(before, resources(machine)) == [finding]


def after_cycles(*amounts: int) -> list[list[str]]:
    """Return the findings after each of several cycles that end with so many descriptors."""
    check = CycleLeakCheck()
    return [check.grown("bind", Resources(((12, amount),), 16, 4)) for amount in amounts]


def test_a_steady_amount_is_no_leak() -> None:
    assert after_cycles(5, 5, 5) == [[], [], []]


def test_less_is_no_leak() -> None:
    assert after_cycles(5, 4, 4) == [[], [], []]


def test_each_growth_is_found_once_with_the_whole_amount() -> None:
    assert after_cycles(5, 6, 6, 7) == [[], ["1 file descriptors"], [], ["2 file descriptors"]]


def test_a_slow_leak_is_found() -> None:
    found = after_cycles(*(5 + cycle // 10 for cycle in range(31)))
    assert [cycle for cycle, findings in enumerate(found) if findings] == [10, 20, 30]
    assert found[30] == ["3 file descriptors"]


def test_a_leak_that_a_transient_hides_is_found() -> None:
    assert after_cycles(6, 5, 6) == [[], [], ["1 file descriptors"]]


def test_workloads_are_compared_with_themselves() -> None:
    check = CycleLeakCheck()
    assert check.grown("bind", Resources(((12, 5),), 0, 0)) == []
    assert check.grown("dma", Resources(((12, 9),), 64, 0)) == []
    assert check.grown("dma", Resources(((12, 9),), 68, 4)) == [
        "4 kB of pinned memory (VmPin)",
        "4 kB of locked memory (VmLck)",
    ]


def test_a_taint_that_is_new() -> None:
    warned, died, bad_page, lockup, modules = 1 << 9, 1 << 7, 1 << 5, 1 << 14, 1 << 12 | 1 << 13
    assert taint_findings(warned, warned) == []
    assert taint_findings(0, modules) == []
    assert taint_findings(warned, 0) == []
    assert taint_findings(0, warned | modules) == ["the kernel is tainted by W, the kernel warned (bit 9)"]
    letters = [line.split()[5] for line in taint_findings(warned, warned | died | bad_page | lockup)]
    assert letters == ["B,", "D,", "L,"]
    assert taint_findings(0, 1 << 40) == ["the kernel is tainted by an unknown bit (bit 40)"]


# Memory of the kernel that nobody refers to any more


class Kmemleak:
    """Behave as the kernel's file does: find a leak at the second scan."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.leaks: list[str] = []
        self.scans = 0
        path.write_text("")

    def write(self, fd: int, data: bytes) -> int:
        assert data == b"scan"
        assert os.readlink(f"/proc/self/fd/{fd}") == str(self.path)
        self.scans += 1
        if self.scans % 2 == 0:
            self.path.write_text("".join(self.leaks))
        return len(data)


@pytest.fixture
def kmemleak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kmemleak]:
    made = Kmemleak(tmp_path / "kmemleak")
    with monkeypatch.context() as patch:
        patch.setattr("vfiotool.util.kernel_files.os.write", made.write)
        yield made


def leak(address: int, frames: int = 3) -> str:
    head = f'unreferenced object {address:#x} (size 64):\n  comm "bash", pid 641, jiffies 4294900000\n'
    return head + "  backtrace:\n" + "".join(f"    [<0>] frame{n}+0x1/0x2\n" for n in range(frames))


def test_leaks_that_are_new(kmemleak: Kmemleak) -> None:
    kmemleak.leaks.append(leak(0xFFFF888000000000))
    scan = LeakScan(str(kmemleak.path))
    assert scan.is_present
    assert scan.scan() == [], "it was there before"
    kmemleak.leaks += [leak(0xFFFF888000000040), leak(0xFFFF888000000080, frames=30)]
    short, long = scan.scan()
    assert short == leak(0xFFFF888000000040).rstrip("\n")
    assert len(long.splitlines()) == LeakScan.MOST_LINES
    assert scan.scan() == [], "each is told of once"
    kmemleak.leaks += [leak(0xFFFF888001000000 + 64 * number) for number in range(150)]
    assert len(scan.scan()) == LeakScan.MOST_REPORTS


def test_a_kernel_without_kmemleak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = LeakScan(str(tmp_path / "kmemleak"))
    assert (absent.is_present, absent.scan()) == (False, [])
    (tmp_path / "kmemleak").touch()

    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.EPERM, "it is turned off")

    with monkeypatch.context() as patch:
        patch.setattr("vfiotool.util.kernel_files.os.write", refuse)
        assert not LeakScan(str(tmp_path / "kmemleak")).is_present
    with pytest.raises(NotADirectoryError):
        LeakScan(str(tmp_path / "kmemleak/file"))


# Tasks


def task(proc: Path, tid: int, state: str, *frames: str, switches: int = 5, wchan: str = "0") -> None:
    """Have a thread of process 12, as the kernel shows it."""
    folder = proc / "12/task" / str(tid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(f"{tid} (un (bind) er) {state} 1 12 12 0")
    (folder / "status").write_text(
        f"Name:\tx\nState:\t{state} (x)\n"
        f"voluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t0\n"
    )
    (folder / "wchan").write_text(wchan)
    if frames:
        (folder / "stack").write_text("".join(f"[<0>] {frame}\n" for frame in frames))


UNREGISTER = "vfio_unregister_group_dev+0x1c2/0x300 [vfio]"
MUTEX = "__mutex_lock+0x10/0x20"


def test_a_task_that_is_left_in_state_d(tmp_path: Path) -> None:
    monitor = StuckTaskMonitor(10.0, str(tmp_path))
    task(tmp_path, 12, "S", "do_wait+0x1/0x2")
    task(tmp_path, 15, "D", UNREGISTER, *["more+0x1/0x2"] * 30)
    assert [monitor.look([12], now) for now in (100.0, 105.0, 110.0)] == [[], [], []]
    (found,) = monitor.look([12], 111.0)
    assert (found.pid, found.tid, found.comm, found.state) == (12, 15, "un (bind) er", "D")
    assert (found.place, len(found.stack)) == (UNREGISTER, 20)
    assert monitor.look([12], 112.0) == [], "each stay is told of once"
    assert monitor.findings() == [
        f"task 15 (un (bind) er) of process 12 was stuck in state D for 11 s in {UNREGISTER}"
    ]
    assert monitor.document() == [
        {
            "pid": 12,
            "tid": 15,
            "comm": "un (bind) er",
            "state": "D",
            "seconds": 11.0,
            "stack": [UNREGISTER, *["more+0x1/0x2"] * 19],
        }
    ]


def test_a_task_that_gets_on_is_not_stuck(tmp_path: Path) -> None:
    """Be it seen elsewhere, running meanwhile, or at the same place again."""
    monitor = StuckTaskMonitor(10.0, str(tmp_path))
    for now in range(60):
        task(tmp_path, 12, "D", (MUTEX, UNREGISTER)[now // 8 % 2])
        task(tmp_path, 13, "D" if now % 9 else "R", MUTEX)
        task(tmp_path, 14, "D", MUTEX, switches=5 + 20 * now)
        assert monitor.look([12], float(now)) == []
    assert (monitor.findings(), monitor.document()) == ([], [])


def test_a_task_that_wakes_for_a_moment_now_and_then_is_stuck(tmp_path: Path) -> None:
    monitor = StuckTaskMonitor(25.0, str(tmp_path))
    found = list[Task]()
    for now in range(40):
        task(tmp_path, 12, "D", UNREGISTER, switches=5 + now // 10)
        found += monitor.look([12], float(now))
    assert len(found) == 1


def test_a_task_that_is_stuck_again_is_told_of_again(tmp_path: Path) -> None:
    monitor = StuckTaskMonitor(1.0, str(tmp_path))
    states = [("D", 0), ("D", 1), ("S", 0), ("D", 0), ("D", 1)]
    for step, (state, found) in enumerate(states):
        task(tmp_path, 12, state, MUTEX)
        assert len(monitor.look([12], 2.0 * step)) == found


def test_without_root_wchan_tells_where(tmp_path: Path) -> None:
    assert next(uninterruptible_tasks(12, str(tmp_path)), None) is None
    task(tmp_path, 12, "D", wchan="vfio_unregister_group_dev")
    found = next(uninterruptible_tasks(12, str(tmp_path)), None)
    assert found is not None
    assert (found.stack, found.place) == ((), "vfio_unregister_group_dev")
    task(tmp_path, 12, "D", wchan="0")
    found = next(uninterruptible_tasks(12, str(tmp_path)), None)
    assert found is not None
    assert found.place == ""


def test_this_process_is_not_stuck() -> None:
    assert next(uninterruptible_tasks(os.getpid()), None) is None
