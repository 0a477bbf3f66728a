"""watch on real kernels: it shows all events in order, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.device_holder import held
from tests.support.guest import (
    E1000E,
    EDU,
    PROGRAM,
    RELEASE,
    TESTDEV,
    await_,
    done,
    driver,
    group,
    kernel_complaints,
    let_everyone_reach,
    needs_iommu,
    path,
    rescan,
    vfiotool,
    write,
)
from vfiotool import cli

pytestmark = [pytest.mark.needs_guest, needs_iommu]

TRACING = "/sys/kernel/tracing"
HAS_NOTIFIER = pytest.mark.skipif(RELEASE > (5, 18), reason="since 5.19 there is no notifier")
HAS_OWNER = pytest.mark.skipif(RELEASE < (5, 19), reason="before 5.19 there is no DMA owner")
SECONDS = 60
SETTLED = 0.6  # entries are held back for a quarter of a second

Lines = list[dict[str, Any]]

_started: list[subprocess.Popen[str]] = []


class Watch:
    """A running ``watch --json``."""

    def __init__(self, *args: str, prefix: tuple[str, ...] = ()) -> None:
        argv = [*prefix, PROGRAM, "watch", "--json", *args]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _started.append(self.process)
        assert self.process.stderr is not None
        self.notes: list[str] = []
        while not self.notes or "watching" not in self.notes[-1]:
            line = self.process.stderr.readline()
            assert line, self.notes
            self.notes.append(line)

    def end(self, number: int = signal.SIGINT) -> Lines:
        """Wait for pending events, end watch, and return its lines."""
        time.sleep(SETTLED)  # nothing tells that no more will come
        self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=SECONDS)
        assert stderr == ""
        return [json.loads(line) for line in stdout.splitlines()]

    @property
    def status(self) -> int | None:
        return self.process.returncode


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    complaints = kernel_complaints()
    yield
    end_all()
    done("restore", "--all")
    assert traces() == ([], [])
    assert kernel_complaints() == complaints


def end_all() -> None:
    """End the processes that a failed test left: each would fail all tests after it."""
    for process in _started:
        if process.poll() is None:
            process.terminate()
            process.wait(SECONDS)
    _started.clear()


def traces() -> tuple[list[str], list[str]]:
    """Return vfiotool's tracefs instances and kprobe events."""
    with open(f"{TRACING}/kprobe_events", encoding="ascii") as file:
        events = [line for line in file if "vfiotool" in line]
    return [name for name in os.listdir(f"{TRACING}/instances") if "vfiotool" in name], events


def find(lines: Lines, **fields: object) -> Lines:
    """Return the lines that have these fields."""
    return [line for line in lines if all(line[name] == value for name, value in fields.items())]


def bind_and_restore() -> None:
    done("bind", E1000E)
    done("restore", E1000E)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Load vfio-pci before, so that its events do not come between."""
    bind_and_restore()


def test_a_bind_and_a_restore() -> None:
    number = group(E1000E)
    watch = Watch(E1000E)
    begun = time.monotonic()
    bind_and_restore()
    ended = time.monotonic()
    lines = watch.end()
    assert watch.status == 0
    for source in ("kernel", "udev"):
        events = find(lines, source=source, address=E1000E)
        actions = [(line["event"], line["driver"]) for line in events if line["event"] in ("bind", "unbind")]
        assert actions == [("unbind", None), ("bind", "vfio-pci"), ("unbind", None), ("bind", "e1000e")]
        assert {line["group"] for line in events} == {number}
    links = [line["driver"] for line in find(lines, source="sysfs", event="driver", address=E1000E)]
    assert links[-1] == "e1000e"
    nodes = find(lines, source="kernel", address=None, group=number)
    assert [line["event"] for line in nodes] == ["add", "remove"]
    assert all(line["detail"] == f"/dev/vfio/{number}" for line in nodes)
    assert {line["address"] for line in lines} <= {E1000E, None}
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert begun - 0.5 < times[0] < times[-1] < ended + 0.5
    assert not find(lines, event="missed")


@pytest.mark.full
@HAS_OWNER
def test_claims_of_the_default_domain_are_shown() -> None:
    """A host driver claims the default domain when it binds; VFIO drivers do not."""
    watch = Watch(E1000E)
    bind_and_restore()
    lines = find(watch.end(), source="probe", address=E1000E)
    uses = [line["event"] for line in lines if line["event"].endswith("_default_domain")]
    assert uses == ["iommu_device_unuse_default_domain", "iommu_device_use_default_domain"]


@HAS_OWNER
def test_claims_of_the_dma_owner_are_shown() -> None:
    """Claims and releases balance, and each claim has its result."""
    done("bind", EDU)
    watch = Watch()
    with held(EDU):
        pass
    lines = find(watch.end(), source="probe")
    results = [line["detail"] for line in find(lines, event="iommu_group_claim_dma_owner") if line["detail"]]
    assert results == ["returns 0"]
    assert len(find(lines, event="iommu_group_release_dma_owner")) == 1


@HAS_NOTIFIER
def test_the_notifier_and_the_deferred_put() -> None:
    watch = Watch(E1000E)
    bind_and_restore()
    lines = find(watch.end(), source="probe")
    actions = [line["detail"] for line in find(lines, event="vfio_iommu_group_notifier", address=E1000E)]
    assert actions[:2] == ["BOUND_DRIVER", "UNBIND_DRIVER"]
    puts = find(lines, event="vfio_group_put_bg")
    assert len(puts) == 2
    (release,) = find(lines, event="vfio_group_release")
    first = find(lines, event="vfio_iommu_group_notifier")[0]
    assert first["time"] < puts[0]["time"] < release["time"]


@pytest.mark.full
def test_the_log_is_on_the_same_clock() -> None:
    """A record that is logged between two events is shown between them."""
    watch = Watch()
    write(path(TESTDEV, "remove"), "1")
    said = f"vfio: between {os.getpid()}"
    write("/dev/kmsg", f"<4>{said}")
    rescan(TESTDEV)
    lines = watch.end()
    (line,) = find(lines, source="kmsg", detail=said)
    probes = find(lines, source="probe", address=TESTDEV)
    (gone,) = find(probes, event="remove_device_from_group")
    (back,) = find(probes, event="add_device_to_group")
    assert gone["time"] < line["time"] < back["time"]
    assert line["event"] == "warning"
    assert line["seqnum"] > 0
    assert find(lines, source="kernel", event="remove", address=TESTDEV)
    assert find(lines, source="kernel", event="add", address=TESTDEV)


def test_a_blocked_unbind_is_shown_before_its_uevent() -> None:
    done("bind", EDU)
    watch = Watch(EDU)
    with held(EDU):
        unbind = subprocess.Popen(["sh", "-c", f"echo {EDU} > {path(EDU, 'driver/unbind')}"])
        await_("its driver link is gone", lambda: driver(EDU) is None)
        time.sleep(SETTLED)
        let_go = time.monotonic()
    unbind.wait(SECONDS)
    lines = watch.end()
    (link,) = find(lines, source="sysfs", event="driver", driver=None)
    assert link["detail"] == "was vfio-pci"
    (event,) = find(lines, source="kernel", event="unbind")
    assert link["time"] < let_go < event["time"]


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_watch_leaves_nothing_after_a_signal(number: int) -> None:
    watch = Watch()
    assert traces()[0]
    watch.end(number)
    assert watch.status == 128 + number
    assert traces() == ([], [])


@pytest.mark.full
def test_watch_removes_what_a_killed_watch_left() -> None:
    killed = Watch()
    killed.process.kill()
    killed.process.communicate()
    instances, events = traces()
    assert len(instances) == 1
    assert events
    other = Watch()
    assert traces()[0] == [f"vfiotool_{other.process.pid}_{traces()[0][0].rpartition('_')[2]}"]
    third = Watch()  # which lets the other be
    assert len(traces()[0]) == 2
    other.end()
    third.end()


@pytest.mark.full
def test_watch_ends_when_its_reader_closes_the_pipe() -> None:
    watch = subprocess.Popen([PROGRAM, "watch"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    _started.append(watch)
    assert watch.stdout is not None
    await_("it watches", lambda: traces()[0] != [])
    bind_and_restore()
    assert watch.stdout.readline()
    watch.stdout.close()
    bind_and_restore()
    assert watch.wait(SECONDS) == 1


@pytest.mark.full
def test_watch_ends_after_its_duration() -> None:
    result = vfiotool("watch", "--duration", "0.2")
    assert result.status == 0
    assert result.stdout == "" or "  " in result.stdout


@pytest.mark.full
def test_an_unprivileged_watch_shows_what_it_may_read() -> None:
    let_everyone_reach(PROGRAM)
    let_everyone_reach(cli.__file__)
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs")
    watch = Watch(E1000E, prefix=nobody)
    assert "note: kernel functions are not probed: only root may\n" in watch.notes
    bind_and_restore()
    lines = watch.end()
    assert find(lines, source="kernel", event="bind", driver="vfio-pci", address=E1000E)
    assert find(lines, source="sysfs", event="driver", driver="e1000e", address=E1000E)
    assert not find(lines, source="probe")
