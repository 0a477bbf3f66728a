"""Stress without a kernel: what can be asked for, and what a run takes of memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from vfiotool.cli.stress import stress
from vfiotool.errors import RefusedError, UsageError
from vfiotool.events.entry import TimelineEntry
from vfiotool.host.tree import Tree
from vfiotool.stress.config import LAB_HOST, parse_workloads, require_lab
from vfiotool.stress.monitors.kernel_log import KernelLogMonitor
from vfiotool.stress.monitors.probes import ProbeMonitor
from vfiotool.stress.monitors.uevents import UeventMonitor
from vfiotool.stress.record import Call, Expectation, ExpectedUevent, Outcome, Record
from vfiotool.stress.results.stats import RunStats
from vfiotool.stress.results.trace import TraceWriter
from vfiotool.stress.workloads import ALL, WORKLOADS
from vfiotool.testing.fake_tree import FakeTree

EDU = "0000:00:10.0"


def test_the_command_line_has_every_workload() -> None:
    assert set(stress.commands) == {*WORKLOADS, ALL, "replay"}


def test_workloads_combine() -> None:
    assert parse_workloads("bind,group,bind") == ("bind", "group")
    assert parse_workloads("bind,all") == tuple(WORKLOADS)
    with pytest.raises(UsageError, match="no workload 'bond'"):
        parse_workloads("bind,bond")


def record(number: int) -> Record:
    call = Call("bind", {"member": 0, "to": "vfio"})
    uevents = (ExpectedUevent("vfio", "add"), ExpectedUevent("pci", "bind", EDU))
    expected = Expectation(uevents=uevents, probes=("iommu_device_use_default_domain",))
    return Record(float(number), 10.0, 0, "bind", number, call, expected, Outcome(), group=5)


@pytest.mark.full
def test_memory_does_not_grow_with_the_run(tmp_path: Any) -> None:
    """A hundred thousand operations, each with two uevents, a function and a line of the log."""
    uevents, probes = UeventMonitor(), ProbeMonitor({"iommu_device_use_default_domain"})
    log = KernelLogMonitor()
    uevents.watch(5, [EDU])
    with TraceWriter(str(tmp_path / "trace.jsonl"), {"seed": 1}) as trace:
        stats = RunStats(trace)

        def work(first: int, count: int) -> None:
            for number in range(first, first + count):
                one = record(number)
                stats.add(one)
                uevents.expect(5, one.expected.uevents)
                probes.expect(one.expected.probes)
                uevents.see(
                    TimelineEntry(0.0, "kernel", "add", group=5, seqnum=2 * number, detail="/dev/vfio/5")
                )
                uevents.see(TimelineEntry(0.0, "kernel", "bind", address=EDU, group=5, seqnum=2 * number + 1))
                probes.see(TimelineEntry(0.0, "probe", "iommu_device_use_default_domain", address=EDU))
                log.see(TimelineEntry(0.0, "kmsg", "info", detail="all is well"))

        work(0, 1000)
        tracemalloc.start()
        work(1000, 2000)
        before, _ = tracemalloc.get_traced_memory()
        work(3000, 100_000)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert stats.operations == 103_000
    assert uevents.is_settled()
    assert after - before < 200_000


def guest(folder: Any, hostname: str, panic_on_oops: str) -> Tree:
    fake = FakeTree(str(folder))
    fake.put("/proc/sys/kernel/hostname", hostname)
    fake.put("/proc/sys/kernel/panic_on_oops", panic_on_oops)
    return fake.tree


@pytest.mark.parametrize(
    ("hostname", "panic_on_oops", "reason"),
    [("workstation", "0", "this machine is no lab guest"), (LAB_HOST, "1", "kernel.panic_on_oops is set")],
)
def test_no_kernel_is_crashed_but_a_guests(
    hostname: str, panic_on_oops: str, reason: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VFIOTOOL_LAB_KERNEL", "5.10")
    with pytest.raises(RefusedError) as refused:
        require_lab(guest(tmp_path, hostname, panic_on_oops))
    assert refused.value.reasons == (reason,)
    assert refused.value.exit_status == 3


def test_a_guest_of_the_lab_may_be_crashed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = guest(tmp_path, LAB_HOST, "0")
    monkeypatch.setenv("VFIOTOOL_LAB_KERNEL", "5.10")
    require_lab(tree)
    monkeypatch.delenv("VFIOTOOL_LAB_KERNEL")
    with pytest.raises(RefusedError):
        require_lab(tree)
