"""Whole runs of stress on this kernel: those that pass, and those that something broken is found by."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.cli_result import Result
from tests.support.guest import (
    E1000_PAIR,
    E1000E,
    EDU,
    KERNEL,
    NVME,
    PROGRAM,
    PUT_HERE,
    SUBSYSTEM_NVME,
    as_before,
    await_,
    command,
    driver,
    kernel_complaints,
    needs_iommu,
    override,
    path,
    read,
    settle,
    vfiotool,
)
from vfiotool.binding.operations import Binding
from vfiotool.events.entry import TimelineEntry
from vfiotool.events.kmsg import KernelLog
from vfiotool.events.probes import KernelProbes
from vfiotool.events.tracefs import MOUNT
from vfiotool.events.uevents import Uevents
from vfiotool.host.era import Era, detect_era
from vfiotool.host.tree import Tree
from vfiotool.stress import runner
from vfiotool.stress.group.client import GroupClient
from vfiotool.stress.group.sysfs import SysfsWriter
from vfiotool.stress.model.operation import Bound, Kind, Operation
from vfiotool.stress.operations.lifecycle import LifecycleOperations
from vfiotool.stress.record import Call, Expectation, Outcome
from vfiotool.stress.workers import Assignment, Worker
from vfiotool.stress.workloads import Workload

pytestmark = [pytest.mark.needs_guest, needs_iommu, pytest.mark.usefixtures("vfio_pci")]

ALL = (EDU, E1000E, SUBSYSTEM_NVME, *E1000_PAIR)


def era() -> Era:
    """Who guards groups here, which some kernels tell once VFIO is loaded."""
    return detect_era(Tree())


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a run finds, devices are as before, and the kernel has not really complained."""
    complaints = kernel_complaints()
    settle()
    before = {address: (driver(address), read(override(address))) for address in (*ALL, NVME)}
    with as_before(*ALL, NVME):
        yield
        settle()
        assert {one: (driver(one), read(override(one))) for one in before} == before
    assert kernel_complaints() == complaints


def stress(folder: str, *arguments: str) -> tuple[Result, dict[str, Any]]:
    """Run stress, and return its result and its report."""
    result = vfiotool("stress", *arguments, "--report", folder)
    with open(f"{folder}/report.json", encoding="utf-8") as file:
        return result, json.load(file)


def trace(folder: str) -> list[dict[str, Any]]:
    """Return the operations of a trace."""
    with open(f"{folder}/trace.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file][1:]


# Runs that pass


@pytest.mark.full
def test_all_passes(tmp_path: Any) -> None:
    # On the debug kernel, whose own checks make a cycle ten times as long, two groups have every workload.
    devices = (EDU, SUBSYSTEM_NVME) if KERNEL == "debug" else ALL
    result, report = stress(str(tmp_path / "report"), "all", *devices, "--cycles", "1", "--seed", "7")
    assert report["unexpected"] == []
    assert report["reasons"] == []
    assert (result.status, report["verdict"]) == (0, "pass"), result
    assert report["schema"] == "vfiotool.stress/1"
    assert (report["kernel"], report["era"]) == (os.uname().release, era().value)
    assert report["restored"]
    done = report["operations"]
    assert sum(one["count"] for one in done.values()) == len(trace(str(tmp_path / "report")))
    assert {"bind", "SET_CONTAINER", "map", "trigger irq", "reset", "remove", "vfs", "race"} < set(done)
    assert all(one["p50_us"] <= one["p90_us"] <= one["p99_us"] <= one["max_us"] for one in done.values())
    assert report["udev"]["expected"] == report["udev"]["received"] > 0
    assert_probed(report["probes"])
    assert (tmp_path / "report/report.html").stat().st_size > 10_000


def assert_probed(probes: dict[str, int]) -> None:
    """See the notifier's actions with their deferred puts, or claims and releases that balance."""
    if era().has_dma_owner:
        claims = probes["iommu_group_claim_dma_owner"], probes["iommu_group_release_dma_owner"]
        assert claims[0] >= claims[1] > 0
        return
    calls = {name.partition(":")[2]: count for name, count in probes.items() if ":" in name}
    assert min(calls[name] for name in ("ADD_DEVICE", "BOUND_DRIVER", "UNBOUND_DRIVER")) > 0
    if era() is Era.DEFERRED_PUT:
        assert probes["vfio_group_put_bg"] == sum(calls.values())


@pytest.mark.full
def test_a_host_driver_that_comes_into_a_live_group(tmp_path: Any) -> None:
    """Since 5.19 it is refused; before, the model leaves it out."""
    result, report = stress(str(tmp_path / "r"), "viability", *E1000_PAIR, "--cycles", "2", "--seed", "1")
    assert (result.status, report["reasons"]) == (0, []), result
    refused = report["operations"]["bind"]["errors"]
    assert refused == ({"EBUSY": 2} if era().has_dma_owner else {})


@pytest.mark.full
def test_the_same_seed_does_the_same(tmp_path: Any) -> None:
    def done(name: str, seed: int) -> list[list[Any]]:
        folder = str(tmp_path / name)
        result, _ = stress(folder, "bind,group,dma", EDU, *E1000_PAIR, "--cycles", "2", "--seed", str(seed))
        assert result.status == 0, result
        lines = sorted(trace(folder), key=lambda line: int(line["unit"]))
        return [[line["unit"], line["workload"], line["operation"], line["arguments"]] for line in lines]

    first = done("first", 5)
    assert done("second", 5) == first
    assert done("third", 6) != first


@pytest.mark.full
def test_a_trace_is_replayed(tmp_path: Any) -> None:
    _, first = stress(str(tmp_path / "first"), "group,dma", EDU, "--cycles", "2", "--seed", "3")
    result, again = stress(str(tmp_path / "again"), "replay", str(tmp_path / "first/trace.jsonl"))
    assert (result.status, again["verdict"]) == (0, "pass"), result
    counts = [{name: one["count"] for name, one in run["operations"].items()} for run in (first, again)]
    assert counts[0] == counts[1]


# Refusals


def test_a_group_is_taken_whole(tmp_path: Any) -> None:
    result = vfiotool("stress", "bind", E1000_PAIR[0], "--report", str(tmp_path / "r"))
    assert result.status == 3
    assert E1000_PAIR[1] in result.stderr
    assert "--group" in result.stderr


def test_a_workload_that_the_devices_cannot_do(tmp_path: Any) -> None:
    result = vfiotool("stress", "sriov", EDU, "--report", str(tmp_path / "r"))
    assert result.status == 4, result


# Runs that something broken is found by


def run_broken(folder: Any, *arguments: str) -> dict[str, Any]:
    """Run something that has to fail, and return its report."""
    result, report = stress(str(folder / "broken"), *arguments, "--seed", "1")
    assert (result.status, report["verdict"]) == (1, "fail"), result
    return report


def test_a_wrong_errno_is_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GroupClient.do

    def wrong(self: GroupClient, operation: Operation) -> tuple[int, int]:
        result = right(self, operation)
        return (errno.EIO, 0) if operation.kind is Kind.SET_IOMMU and result[0] == 0 else result

    monkeypatch.setattr(GroupClient, "do", wrong)
    report = run_broken(tmp_path, "dma", EDU, "--cycles", "1")
    first = report["unexpected"][0]
    assert (first["operation"], first["expected"], first["got"]) == ("SET_IOMMU container=0", "0", "EIO")
    shrunk = vfiotool("stress", "replay", str(tmp_path / "broken/trace.jsonl"), "--shrink", "--json")
    operations = [line["operation"] for line in shrunk.document["operations"]]
    least = ["open container", "open group", "SET_CONTAINER", "SET_IOMMU"]
    assert sorted(operations[:4]) == sorted(least), shrunk


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda entries: entries[:-1], "did not come"),
        pytest.param(lambda entries: [*entries, entries[-1]], "came again", marks=pytest.mark.full),
    ],
    ids=["swallowed", "doubled"],
)
def test_an_event_that_is_swallowed_or_doubled_is_found(
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[TimelineEntry]], list[TimelineEntry]],
    found: str,
) -> None:
    right, done = Uevents.read, Counter[str]()

    def broken(self: Uevents) -> Iterator[TimelineEntry]:
        entries = list(right(self))
        if entries and not done["broken"] and entries[-1].address == EDU:
            done["broken"] += 1
            entries = change(entries)
        return iter(entries)

    monkeypatch.setattr(Uevents, "read", broken)
    report = run_broken(tmp_path, "bind", EDU, "--cycles", "2")
    assert [reason for reason in report["reasons"] if found in reason], report["reasons"]


@pytest.mark.full
def test_a_function_that_is_not_balanced_is_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = "iommu_group_release_dma_owner" if era().has_dma_owner else "vfio_group_put_bg"
    right, done = KernelProbes.read, Counter[str]()

    def broken(self: KernelProbes) -> Iterator[TimelineEntry]:
        for entry in right(self):
            if entry.event == lost and not done["lost"]:
                done["lost"] += 1
                continue
            yield entry

    monkeypatch.setattr(KernelProbes, "read", broken)
    report = run_broken(tmp_path, "bind,dma", EDU, "--cycles", "1")
    assert [reason for reason in report["reasons"] if lost in reason], report["reasons"]


LINES = {
    "warning": "WARNING: CPU: 0 PID: 1 at drivers/vfio/vfio.c:1",
    "bug": "kernel BUG at drivers/vfio/vfio.c:775!",
    "lockdep": "WARNING: possible circular locking dependency detected",
    "kasan": "BUG: KASAN: use-after-free in vfio_group_release+0x1/0x2",
    "hung task": "INFO: task vfiotool:1 blocked for more than 120 seconds",
    "blocked": "vfio-pci 0000:00:10.0: blocked until released by user",
    "leak": "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "iommu fault": "DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x0",
}


def log_line(text: str) -> None:
    """Have the kernel log a line of ours."""
    with open("/dev/kmsg", "w", encoding="ascii") as log:
        log.write(f"<4>{text} {PUT_HERE}")


@pytest.mark.full
@pytest.mark.parametrize("kind", LINES)
def test_each_kind_of_line_in_the_log_is_found(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KernelLog.__init__

    def opened(self: KernelLog, offset: float = 0.0, path: str = "/dev/kmsg") -> None:
        right(self, offset, path)
        log_line(LINES[kind])

    monkeypatch.setattr(KernelLog, "__init__", opened)
    report = run_broken(tmp_path, "bind", EDU, "--cycles", "1")
    assert [line["kind"] for line in report["kernel_log"]] == [kind]
    assert report["restored"]


def is_to_stub(operation: Operation) -> bool:
    return operation.kind is Kind.BIND and operation.to is Bound.STUB


def reduced(folder: Any, *options: str) -> Result:
    """Reduce what the monitors found: some member of the group comes to pci-stub, and leaves it again."""
    result = vfiotool("stress", "replay", str(folder / "broken/trace.jsonl"), "--shrink", "--json", *options)
    assert result.status == 0, result
    done = [(line["operation"], line["arguments"].get("to")) for line in result.document["operations"]]
    assert done == [("unbind", None), ("bind", "stub"), ("unbind", None), ("bind", "vfio")]
    return result


@pytest.mark.full
def test_nothing_is_reduced_of_what_goes_as_expected(tmp_path: Any) -> None:
    """The monitors find nothing, either: not in fds, nor in what a worker of the kernel does later."""
    folder = str(tmp_path / "right")
    result, _ = stress(folder, "bind,group,dma", EDU, *E1000_PAIR, "--cycles", "1", "--seed", "3")
    assert result.status == 0, result
    again = vfiotool("stress", "replay", f"{folder}/trace.jsonl", "--shrink")
    assert again.status == 1
    assert "every outcome is as expected now" in again.stderr
    assert "hint:" in again.stderr


@pytest.mark.full
def test_what_only_the_log_tells_of_is_reduced_to_what_shows_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GroupClient.do

    def logging(self: GroupClient, operation: Operation) -> tuple[int, int]:
        if is_to_stub(operation):
            log_line("WARNING: CPU: 0 PID: 1 at drivers/pci/pci-stub.c:1")
        return right(self, operation)

    script = tmp_path / "show.py"
    with monkeypatch.context() as patched:
        patched.setattr(GroupClient, "do", logging)
        report = run_broken(tmp_path, "bind,group", EDU, "--cycles", "1")
        assert report["kernel_log"]
        assert not report["unexpected"]
        found = reduced(tmp_path, "--script", str(script)).document["found"]
    assert len(found) == 1
    assert "of the kind warning in drivers/pci/pci-stub.c:1, once" in found[0]
    shown = command(sys.executable, "-I", str(script))
    assert (shown.status, shown.stdout.splitlines()[-1]) == (0, "all goes as expected"), shown


@pytest.mark.full
def test_what_only_a_uevent_tells_of_is_reduced_to_what_shows_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Uevents.read

    def lossy(self: Uevents) -> Iterator[TimelineEntry]:
        return (entry for entry in right(self) if entry.driver != "pci-stub")

    monkeypatch.setattr(Uevents, "read", lossy)
    report = run_broken(tmp_path, "bind", EDU, "--cycles", "3")
    assert report["udev"]["missing"]
    assert reduced(tmp_path).document["found"] == [f"a uevent of {EDU} (pci) did not come, once: bind"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("leak", "found"),
    [
        (lambda: os.open("/dev/null", os.O_RDONLY), "file descriptors"),
        (lambda: lock_a_page(), "VmLck"),
    ],
    ids=["fd", "page"],
)
def test_what_a_worker_leaks_is_found(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, leak: Callable[[], Any], found: str
) -> None:
    right = Worker._run_cycle

    def leaking(self: Worker, *arguments: Any) -> None:
        leak()
        right(self, *arguments)

    monkeypatch.setattr(Worker, "_run_cycle", leaking)
    report = run_broken(tmp_path, "bind", EDU, "--cycles", "3")
    assert [one for one in report["resources"]["leaked"] if found in one], report["resources"]


def lock_a_page() -> None:
    """Have one more page that stays in memory."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    assert libc.mlock(ctypes.c_void_p(address), mmap.PAGESIZE) == 0
    KEPT.append(page)


KEPT: list[Any] = []


@pytest.mark.full
def test_a_device_that_stays_on_the_wrong_driver_is_found(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Binding, "restore", lambda self, wanted: None)
        report = run_broken(tmp_path, "bind", E1000E, "--cycles", "1")
    assert not report["restored"]
    assert [reason for reason in report["reasons"] if f"driver of {E1000E} is vfio-pci" in reason]
    assert vfiotool("restore", E1000E).status == 0


@pytest.mark.full
def test_a_task_that_is_stuck_is_reported_and_not_waited_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal moves a blocked unbind to state D; no process releases the device."""
    blocks = SysfsWriter.blocks

    def blocks_in_state_d(self: SysfsWriter) -> bool:
        waits = blocks(self)
        os.kill(self.pid, signal.SIGUSR1)
        return waits

    def nothing(self: LifecycleOperations, call: Call) -> Iterator[Call]:
        return iter(())

    def held(self: LifecycleOperations, call: Call) -> Outcome:
        signal.pause()
        return Outcome()

    monkeypatch.setattr(SysfsWriter, "blocks", blocks_in_state_d)
    monkeypatch.setattr(LifecycleOperations, "releases", nothing)
    monkeypatch.setattr(LifecycleOperations, "finish", held)
    monkeypatch.setattr(runner, "_PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(runner, "_END_SECONDS", 5.0)
    report = run_broken(tmp_path, "group", EDU, "--cycles", "20")
    (stuck,) = report["resources"]["stuck"]
    assert stuck["state"] == "D"
    assert [frame for frame in stuck["stack"] if "vfio_" in frame], stuck
    assert report["restored"]


@pytest.mark.full
def test_a_worker_that_does_nothing_is_not_waited_for(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "_leaked", lambda self, part, workload: signal.pause())
    monkeypatch.setattr(runner, "_SILENCE_SECONDS", 3.0)
    report = run_broken(tmp_path, "bind", EDU, "--cycles", "1")
    assert [reason for reason in report["reasons"] if "has done nothing for" in reason], report["reasons"]
    assert report["restored"]


def test_no_worker_has_open_what_watches_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stuck in the kernel would keep the trace instance from being removed."""

    def watching(self: Worker, part: Assignment, workload: Workload) -> tuple[str, ...]:
        opened = [os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry)]
        return tuple(one for one in opened if "tracing" in one or "kmsg" in one)

    monkeypatch.setattr(Worker, "_leaked", watching)
    result, report = stress(str(tmp_path / "report"), "bind", EDU, "--cycles", "1", "--seed", "1")
    assert (result.status, report["reasons"]) == (0, []), result
    assert [name for name in os.listdir(f"{MOUNT}/instances") if "vfiotool" in name] == []


@pytest.mark.full
def test_an_expectation_that_is_wrong_is_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LifecycleOperations.expect

    def wrong(self: LifecycleOperations, call: Call) -> Expectation | None:
        expected = right(self, call)
        is_bind = expected is not None and call.name == "bind"
        return Expectation(frozenset((errno.EBUSY,))) if is_bind else expected

    monkeypatch.setattr(LifecycleOperations, "expect", wrong)
    report = run_broken(tmp_path, "bind", EDU, "--cycles", "1")
    assert (report["unexpected"][0]["expected"], report["unexpected"][0]["got"]) == ("EBUSY", "0")


# Runs that end early


@pytest.fixture
def running(tmp_path: Any) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on for long, and has begun to work."""
    folder = tmp_path / "early"
    words = [PROGRAM, "stress", "bind,group,dma", E1000E, EDU, "--duration", "300", "--report", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:

        def works() -> bool:
            assert run.poll() is None, run.communicate()[0]
            return (folder / "trace.jsonl").exists() and len(trace(str(folder))) > 20

        await_("it works", works, 180)
        yield run


@pytest.mark.full
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_run_that_is_told_to_end_reports(name: str, running: subprocess.Popen[str], tmp_path: Any) -> None:
    running.send_signal(getattr(signal, name))
    running.send_signal(getattr(signal, name))  # impatience changes nothing
    output = running.communicate(timeout=120)[0]
    report = json.loads((tmp_path / "early/report.json").read_text())
    assert (running.returncode, report["verdict"]) == (0, "pass"), output
    assert (report["interrupted"], report["restored"]) == (name, True)
    assert report["cycles"] > 0


@pytest.mark.full
def test_a_run_that_is_killed_gives_devices_back_and_says_how_far_it_came(
    running: subprocess.Popen[str], tmp_path: Any
) -> None:
    running.kill()
    running.wait()
    path = tmp_path / "early/report.json"
    await_("the cleanup process reports", path.exists, 120)
    report = json.loads(path.read_text())
    assert (report["interrupted"], report["verdict"], report["restored"]) == ("killed", "fail", True)
    assert sum(one["count"] for one in report["operations"].values()) > 20
    assert vfiotool("recover").status == 0
    assert not [name for name in os.listdir("/sys/kernel/tracing/instances") if "vfiotool" in name]


@pytest.mark.full
def test_the_vfs_of_a_run_that_is_killed_go(tmp_path: Any) -> None:
    numvfs, autoprobe = (path(SUBSYSTEM_NVME, f"sriov_{name}") for name in ("numvfs", "drivers_autoprobe"))
    words = [
        PROGRAM,
        "stress",
        "sriov",
        SUBSYSTEM_NVME,
        "--duration",
        "300",
        "--report",
        str(tmp_path / "vfs"),
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        await_("there are VFs", lambda: (read(numvfs) or "0") != "0", 180)
        run.kill()
    await_("the cleanup process reports", (tmp_path / "vfs/report.json").exists, 120)
    assert (read(numvfs), read(autoprobe)) == ("0", "1")
    assert driver(SUBSYSTEM_NVME) == "nvme"


@pytest.mark.full
def test_a_full_disk_gives_devices_back(tmp_path: Any) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=True)
    try:
        words = ("stress", "dma", EDU, "--cycles", "50", "--report", str(folder / "report"))
        result = vfiotool(*words)
        assert result.status == 1
        assert "No space left" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    finally:
        subprocess.run(["umount", str(folder)], check=True)
