"""vfiotool.events: the entries that each source makes of the kernel's text, and the merged timeline."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiotool import cli
from vfiotool.errors import UnsupportedError
from vfiotool.events import tracefs
from vfiotool.events.driver_links import DriverLinks
from vfiotool.events.entry import TimelineEntry, now
from vfiotool.events.entry_filter import EntryFilter
from vfiotool.events.kmsg import parse_record
from vfiotool.events.probes import decode
from vfiotool.events.timeline import Timeline
from vfiotool.events.tracefs import TraceInstance, parse_line, remove_stale
from vfiotool.events.uevents import Uevents
from vfiotool.host.pending_unbinds import process_start
from vfiotool.host.tree import Tree
from vfiotool.render.timeline import write_entry, write_line

EDU = "0000:00:10.0"


# Lines of the trace


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "    modprobe-12    [000] .....   123.456789: vfio_group_put_bg: (vfio_group_put_bg+0x0/0x20)",
            (123.456789, "vfio_group_put_bg", "(vfio_group_put_bg+0x0/0x20)"),
        ),
        (
            "  kworker/0:1-m-7  [001] d..31 1.000001: map: IOMMU: iova=0x1000",
            (1.000001, "map", "IOMMU: iova=0x1000"),
        ),
        (
            "  <...>-5   (-----) [000] ....   2.5: tracing_mark_write: a: b",
            (2.5, "tracing_mark_write", "a: b"),
        ),
        ("# tracer: nop", None),
        ("", None),
        ("CPU:0 [LOST", None),
    ],
)
def test_a_line_of_the_trace(line: str, event: object) -> None:
    assert parse_line(line) == event


def test_lost_events_are_reported_as_missed() -> None:
    event = parse_line("CPU:1 [LOST 17 EVENTS]")
    assert event is not None
    assert event[1:] == ("missed", "17 events of the trace buffer")


@given(st.text())
def test_a_random_line_is_an_event_or_none(line: str) -> None:
    if event := parse_line(line):
        decode(*event)


# Probe events


def test_the_action_of_the_notifier_is_decoded() -> None:
    text = f'(vfio_iommu_group_notifier+0x0/0x150 [vfio]) action=4 device="{EDU}"'
    assert decode(1.5, "vfio_iommu_group_notifier", text) == TimelineEntry(
        1.5, "probe", "vfio_iommu_group_notifier", address=EDU, detail="BOUND_DRIVER"
    )
    unknown = decode(1.5, "vfio_iommu_group_notifier", text.replace("action=4", "action=99"))
    assert unknown.detail == "action 99"


@pytest.mark.parametrize(("result", "said"), [("0", "0"), ("-16", "EBUSY"), ("-4095", "4095")])
def test_a_returned_error_is_decoded(result: str, said: str) -> None:
    text = f"(really_probe+0x1/0x2 <- iommu_group_claim_dma_owner) result={result}"
    entry = decode(2.0, "iommu_group_claim_dma_owner_returns", text)
    assert (entry.event, entry.detail) == ("iommu_group_claim_dma_owner", f"returns {said}")


def test_tracepoints_keep_their_text() -> None:
    entry = decode(3.0, "add_device_to_group", f"IOMMU: groupID=7 device={EDU}")
    assert (entry.group, entry.address, entry.detail) == (7, EDU, f"groupID=7 device={EDU}")


# Records of the kernel's log


def test_a_record_of_the_log() -> None:
    record = f"4,812,2500000,-;vfio-pci {EDU}: enabling\n SUBSYSTEM=pci\n DEVICE=+pci:{EDU}\n"
    expected = TimelineEntry(
        3.0, "kmsg", "warning", address=EDU, seqnum=812, detail=f"vfio-pci {EDU}: enabling"
    )
    assert parse_record(record, 0.5) == expected
    assert parse_record("30,1,0,-;plain\n", 0.0) == TimelineEntry(
        0.0, "kmsg", "info", seqnum=1, detail="plain"
    )
    assert parse_record("not a record", 0.0) is None


@given(st.text(), st.floats(0, 1e6))
def test_a_random_record_is_an_entry_or_none(record: str, offset: float) -> None:
    parse_record(record, offset)


# Uevents


class Monitor:
    """A fake of pyudev.Monitor with the events that it will receive."""

    def __init__(self, *events: object) -> None:
        self.events = list(events)

    def set_receive_buffer_size(self, size: int) -> None:
        raise PermissionError(errno.EPERM, "not root")

    def start(self) -> None:
        """Do nothing: it is started."""

    def poll(self, timeout: float) -> object:
        assert timeout == 0
        event = self.events.pop(0) if self.events else None
        if isinstance(event, OSError):
            raise event
        return event


def uevent(seqnum: int, name: str, subsystem: str = "pci", **fields: str) -> SimpleNamespace:
    return SimpleNamespace(
        action=fields.pop("action", "add"),
        subsystem=subsystem,
        sys_name=name,
        sys_path=f"/sys/devices/{EDU}/vfio-dev/{name}",
        device_node=fields.pop("node", None),
        sequence_number=seqnum,
        properties=fields,
    )


def uevents(
    monkeypatch: pytest.MonkeyPatch, tree: Tree, *events: object, source: Literal["kernel", "udev"] = "kernel"
) -> list[TimelineEntry]:
    """Return the entries of these events."""
    monkeypatch.setattr("vfiotool.events.udev._context", lambda: None)
    monkeypatch.setattr("pyudev.Monitor.from_netlink", lambda context, source: Monitor(*events))
    return list(Uevents(source, tree).read())


def test_uevents_of_devices_and_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "sys/bus/pci/devices" / EDU
    device.mkdir(parents=True)
    (device / "iommu_group").symlink_to("../../kernel/iommu_groups/7")
    entries = uevents(
        monkeypatch,
        Tree(str(tmp_path)),
        uevent(4, EDU, action="bind", DRIVER="vfio-pci"),
        uevent(5, "eth0", "net"),
        uevent(6, "7", "vfio", node="/dev/vfio/7"),
        uevent(7, "vfio0", "vfio-dev", node="/dev/vfio/devices/vfio0"),
        uevent(8, "0000:00:11.0", action="remove"),
    )
    seen = [(each.event, each.address, each.group, each.driver, each.seqnum, each.detail) for each in entries]
    assert seen == [
        ("bind", EDU, 7, "vfio-pci", 4, ""),
        ("add", None, 7, None, 6, "/dev/vfio/7"),
        ("add", EDU, 7, None, 7, "/dev/vfio/devices/vfio0"),
        ("remove", "0000:00:11.0", None, None, 8, ""),
    ]


def test_missing_uevents_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subsystem of the next uevent does not matter. udevd may reorder uevents."""
    monkeypatch.setattr("vfiotool.events.uevents._LATE", -1)
    events = (uevent(4, EDU), OSError(errno.ENOBUFS, "overrun"), uevent(8, "eth0", "net"), uevent(9, EDU))
    entries = uevents(monkeypatch, Tree(str(tmp_path)), *events)
    assert [(entry.event, entry.seqnum, entry.detail) for entry in entries] == [
        ("add", 4, ""),
        ("add", 9, ""),
        ("missed", 8, "uevents 5 to 7"),
    ]
    entries = uevents(monkeypatch, Tree(str(tmp_path)), *events, source="udev")
    assert [entry.seqnum for entry in entries] == [4, 9]


def test_late_uevents_are_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors assign the numbers first, and then send their uevents in any order."""
    monkeypatch.setattr("vfiotool.events.uevents._LATE", -1)
    entries = uevents(monkeypatch, Tree(str(tmp_path)), *(uevent(number, EDU) for number in (4, 8, 6, 5, 9)))
    assert [(entry.event, entry.seqnum, entry.detail) for entry in entries][-1] == (
        "missed",
        8,
        "uevents 7 to 7",
    )
    assert [entry.seqnum for entry in entries[:-1]] == [4, 8, 6, 5, 9]


def test_a_number_counts_as_missing_after_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = uevents(monkeypatch, Tree(str(tmp_path)), uevent(4, EDU), uevent(6, EDU))
    assert [entry.event for entry in entries] == ["add", "add"]


def test_an_error_of_the_monitor_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="broken"):
        uevents(monkeypatch, Tree(str(tmp_path)), OSError(errno.EIO, "broken"))


# Drivers


def test_changes_of_drivers_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("vfiotool.events.driver_links.now", lambda: clock[0])
    devices = tmp_path / "sys/bus/pci/devices"
    for name in ("0000:00:01.0", EDU):
        (devices / name).mkdir(parents=True)
    (devices / EDU / "driver").symlink_to("../drivers/edu")
    links = DriverLinks(Tree(str(tmp_path)))
    (devices / EDU / "driver").unlink()
    (devices / "0000:00:02.0").mkdir()
    (devices / "0000:00:01.0").rmdir()
    assert list(links.read()) == [], "it is not looked at again so soon"
    clock[0] += 1
    shown = [(entry.event, entry.address, entry.driver, entry.detail) for entry in links.read()]
    assert shown == [
        ("gone", "0000:00:01.0", None, ""),
        ("appeared", "0000:00:02.0", None, ""),
        ("driver", EDU, None, "was edu"),
    ]
    (devices / EDU / "driver").symlink_to("../drivers/vfio-pci")
    clock[0] += 1
    (entry,) = links.read()
    assert (entry.event, entry.driver, entry.detail) == ("driver", "vfio-pci", "was none")


# The filter


def test_the_filter_selects_entries_by_device_and_group(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices" / EDU
    device.mkdir(parents=True)
    (device / "iommu_group").symlink_to("../../kernel/iommu_groups/7")
    entry_filter = EntryFilter(Tree(str(tmp_path)), [EDU])
    shown = [
        TimelineEntry(0, "kernel", "bind", address=EDU),
        TimelineEntry(0, "kernel", "add", group=7),
        TimelineEntry(0, "probe", "vfio_group_put_bg"),
        TimelineEntry(0, "kmsg", "warning", detail="whatever"),
        TimelineEntry(0, "kmsg", "info", detail="VFIO - User Level meta-driver"),
    ]
    hidden = [
        TimelineEntry(0, "kernel", "bind", address="0000:00:11.0"),
        TimelineEntry(0, "kernel", "bind", address="0000:00:11.0", group=7),
        TimelineEntry(0, "kernel", "add", group=8),
        TimelineEntry(0, "kmsg", "info", detail="usb 1-1: new device"),
    ]
    assert [entry for entry in shown + hidden if entry_filter.is_shown(entry)] == shown
    everything = EntryFilter(Tree(str(tmp_path)), [])
    assert [entry for entry in shown + hidden if everything.is_shown(entry)] == shown + hidden[:3]


# The merged timeline


class ReadySource:
    """A source whose entries are all there at once."""

    def __init__(self, *entries: TimelineEntry) -> None:
        self.entries = list(entries)

    def fileno(self) -> None:
        return None

    def read(self) -> Iterable[TimelineEntry]:
        entries, self.entries = self.entries, []
        return entries

    def close(self) -> None:
        """Do nothing: nothing is open."""


def test_sources_are_merged_by_time() -> None:
    begun = now()
    first = ReadySource(TimelineEntry(begun + 0.02, "kmsg", "b"), TimelineEntry(begun + 0.01, "kmsg", "a"))
    second = ReadySource(
        TimelineEntry(begun + 0.02, "probe", "c"), TimelineEntry(begun + 0.015, "probe", "d")
    )
    timeline = Timeline([first, second])
    assert [entry.event for entry in timeline.entries(until=now())] == ["a", "d", "b", "c"]


def test_an_entry_is_held_for_earlier_entries_of_slower_sources() -> None:
    late = ReadySource()
    timeline = Timeline([ReadySource(TimelineEntry(now(), "udev", "second")), late])
    entries = timeline.entries()
    late.entries.append(TimelineEntry(now() - 0.1, "probe", "first"))
    assert [next(entries).event, next(entries).event] == ["first", "second"]


def test_held_entries_are_not_lost() -> None:
    timeline = Timeline([ReadySource(TimelineEntry(now() + 60, "udev", "last"))])
    assert [entry.event for entry in timeline.entries(until=now())] == ["last"]


# tracefs, faked by a plain directory


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    (tmp_path / "instances").mkdir()
    (tmp_path / "kprobe_events").write_text("")
    return tmp_path


def test_without_tracefs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not mounted") as caught:
        TraceInstance(str(tmp_path / "none"))
    assert "mount -t tracefs" in str(caught.value.hint)


def test_leftovers_of_exited_processes_are_removed(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of other programs and of live processes remain."""
    appended: list[str] = []
    monkeypatch.setattr(tracefs, "_append", lambda mount, line: appended.append(line))
    mine = f"vfiotool_{os.getpid()}_{process_start(Tree(), os.getpid())}"
    another = f"vfiotool_{os.getpid()}_1"  # a process of this number, but not this one
    gone = "vfiotool_4194305_77"
    for name in (mine, another, "other"):
        (mount / "instances" / name).mkdir()
    kprobes = (f"p:{mine}/f vfio:f", f"p:{gone}/g vfio:g action=%si:u64", f"r64:{gone}/h h", "p:kprobes/x x")
    (mount / "kprobe_events").write_text("\n".join((*kprobes, "")))
    assert remove_stale(str(mount)) == sorted([another, gone])
    assert sorted(os.listdir(mount / "instances")) == sorted([mine, "other"])
    assert appended == [f"-:{gone}/g", f"-:{gone}/h"]


# The output


def test_an_entry_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    write_entry(TimelineEntry(1.25, "udev", "bind", address=EDU, group=7, driver="vfio-pci", seqnum=9))
    assert json.loads(capsys.readouterr().out) == {
        "schema": "vfiotool.watch/1",
        "time": 1.25,
        "source": "udev",
        "event": "bind",
        "address": EDU,
        "group": 7,
        "driver": "vfio-pci",
        "seqnum": 9,
        "detail": "",
    }


def test_an_entry_as_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_line(TimelineEntry(1.25, "kmsg", "info", address=EDU, group=7, detail="moves \x1b[2J the cursor"))
    words = capsys.readouterr().out.split()
    assert words[:6] == ["1.250000", "kmsg", "info", EDU, "group", "7"]
    assert "\x1b" not in " ".join(words)


def test_watch_refuses_a_sysroot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sys").mkdir()
    assert cli.run(["--sysroot", str(tmp_path), "watch"]) == 2
    assert "'vfiotool watch' works only on the running machine" in capsys.readouterr().err
