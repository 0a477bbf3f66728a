"""The results of a stress run: trace, latencies, verdict, page, and the progress display."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.strategies import examples
from vfiotool.errors import ClosedError, VfioToolError
from vfiotool.render.report_page import write_page
from vfiotool.render.report_page.markup import duration
from vfiotool.render.report_page.scales import LogScale, TimeScale
from vfiotool.render.stress_progress import ProgressDisplay, RunProgress
from vfiotool.stress.cleanup import killed_report
from vfiotool.stress.record import Call, Expectation, Outcome, Record, TraceLine, errno_name
from vfiotool.stress.results.report import (
    KILLED,
    MOST_UNEXPECTED,
    Measured,
    Report,
    Unexpected,
    judge,
    prepare_folder,
    utc_text,
    write_report,
)
from vfiotool.stress.results.stats import MOST_NAMES, OTHERS, Latencies
from vfiotool.stress.results.trace import Trace, TraceWriter, read_trace, sample_trace
from vfiotool.testing import FakeHost

ADDRESS = "0000:01:00.0"
HEADER: dict[str, Any] = {
    "kernel": "6.12.48",
    "era": "cdev",
    "devices": [ADDRESS],
    "seed": 7,
    "workloads": ["group"],
    "units": [{"group": 3, "members": [ADDRESS], "hosts": {ADDRESS: "e1000e"}}],
    "started": "2026-01-01T00:00:00Z",
}
RECORD = Record(
    at=12.5,
    took_us=80.25,
    unit=0,
    workload="group",
    cycle=4,
    call=Call("SET_CONTAINER", {"fd": 3, "node": "/dev/vfio/3"}),
    expected=Expectation(),
    outcome=Outcome(errno.EPERM),
    released="unbind",
)
LINE = RECORD.line().document()


def write_trace(path: Path, *documents: dict[str, Any]) -> None:
    with TraceWriter(str(path), HEADER) as trace:
        for document in documents:
            trace.write(document)
    assert trace.failure is None


def write_lines(path: Path, *raw: bytes) -> None:
    """Write a trace with a good header and any lines."""
    write_trace(path)
    with path.open("ab") as file:
        file.writelines(raw)


# The trace


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    good = Record(1.0, 2.0, 0, "bind", 1, Call("unbind"), Expectation(), Outcome())
    write_trace(path, LINE, good.line().document())
    header = json.loads(path.read_text().splitlines()[0])
    assert header == {"schema": "vfiotool.trace/1", **HEADER}
    assert read_trace(str(path)) == Trace(
        header,
        [
            TraceLine(0, "group", 4, RECORD.call, "0", "EPERM", True, "unbind", 12.5, 80.2),
            TraceLine(0, "bind", 1, Call("unbind"), "0", "0", False, "", 1.0, 2.0),
        ],
        cut=False,
    )


def test_a_line_says_what_its_record_said(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", LINE)
    (line,) = read_trace(str(tmp_path / "trace")).lines
    assert line.document() == LINE


def test_a_flush_leaves_all_to_who_reads_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with TraceWriter(str(path), HEADER) as trace:
        trace.write(LINE)
        assert read_trace(str(path)).lines == []
        trace.flush()
        assert len(read_trace(str(path)).lines) == 1


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_cut_last_line_is_left_out(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "trace"
    raw = json.dumps(LINE).encode()
    write_lines(path, raw + b"\n", raw[:kept])
    trace = read_trace(str(path))
    assert (len(trace.lines), trace.cut) == (1, True)


def test_a_last_line_that_only_lacks_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write_lines(path, json.dumps(LINE).encode())
    trace = read_trace(str(path))
    assert (len(trace.lines), trace.cut) == (1, False)


def test_a_long_text_is_clipped_to_what_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write_trace(path, {**LINE, "got": "\0" * 1_000_000})
    assert 100 < len(read_trace(str(path)).lines[0].got) < 10_000


def test_half_a_surrogate_is_written_as_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write_trace(path, {**LINE, "got": "\udc80"})
    assert read_trace(str(path)).lines[0].got == "?"


def test_a_closed_trace_takes_nothing(tmp_path: Path) -> None:
    trace = TraceWriter(str(tmp_path / "trace"), HEADER)
    trace.close()
    trace.close()
    with pytest.raises(ClosedError):
        trace.write(LINE)


def test_a_trace_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(VfioToolError, match="No such file or directory") as caught:
        TraceWriter(str(tmp_path / "nowhere/trace"), HEADER)
    assert caught.value.hint


def test_a_full_device_does_not_raise() -> None:
    with TraceWriter("/dev/full", HEADER) as trace:
        for _ in range(1000):
            trace.write(LINE)
    assert trace.failure is not None
    assert (trace.failure.errno, trace.dropped) == (errno.ENOSPC, 1000)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of files, as the kernel does it: a short write, then EFBIG.

    For no longer than it must: pytest writes to a file, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [5, 1000, 100_000, 150_001])
def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path, most: int) -> None:
    path = tmp_path / "trace"
    with files_of_at_most(most), TraceWriter(str(path), HEADER) as trace:
        for cycle in range(2000):
            trace.write({**LINE, "cycle": cycle})
    assert trace.failure is not None
    assert trace.failure.errno == errno.EFBIG
    raw = path.read_bytes()
    assert len(raw) <= most
    assert raw == b"" or raw.endswith(b"\n")
    lines = raw.splitlines()[1:]
    assert [json.loads(line)["cycle"] for line in lines] == list(range(len(lines)))
    assert len(lines) + trace.dropped == 2000
    assert most < 1000 or len(raw) > most - 400


def test_a_sample_has_a_share_and_all_that_is_unexpected(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    good = {key: value for key, value in LINE.items() if key != "unexpected"}
    lines = [LINE if cycle % 1000 == 0 else good for cycle in range(20_000)]
    write_trace(path, *({**line, "cycle": cycle} for cycle, line in enumerate(lines)))
    sample = list(sample_trace(str(path), 500))
    assert [line["cycle"] for line in sample if line.get("unexpected")] == list(range(0, 20_000, 1000))
    assert 400 < len(sample) < 650
    assert sample == list(sample_trace(str(path), 500))
    assert len(list(sample_trace(str(path), 20_001))) == 20_000
    path.write_bytes(b"")
    assert list(sample_trace(str(path), 500)) == []


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"unit": 1}, "the header has no unit 1"),
        ({"unit": -1}, "unit is below 0"),
        ({"unit": True}, "unit is not an integer"),
        ({"cycle": 1.5}, "cycle is not an integer"),
        ({"cycle": 1 << 64}, "cycle is not an integer of 64 bits"),
        ({"at": "1"}, "at is not a number"),
        ({"at": float("inf")}, "Infinity is not a number"),
        ({"us": -1}, "us is not a number of 0 or more"),
        ({"us": 10**400}, "us is not a number"),
        ({"operation": None}, "operation is not a string"),
        ({"arguments": []}, "arguments is not an object"),
        ({"arguments": {"a": [1]}}, "argument 'a' is not an integer"),
        ({"arguments": {"a": False}}, "argument 'a' is not an integer"),
        ({"got": 0}, "got is not a string"),
        ({"got": "\ud800"}, "half a surrogate pair"),
        ({"unexpected": 1}, "unexpected is neither"),
        ({"released": 1}, "released is not a string"),
        ({"relased": ""}, "'relased' is not a field"),
        ({"got": "x" * 200_000}, "more than 131072 bytes"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], cause: str) -> None:
    path = tmp_path / "trace"
    write_lines(path, json.dumps({**LINE, **change}).encode() + b"\n")
    with pytest.raises(VfioToolError, match=cause) as caught:
        read_trace(str(path))
    assert caught.value.message.startswith(f"line 2 of the trace {path} is invalid: ")
    assert caught.value.hint


@pytest.mark.parametrize("name", [name for name in LINE if name not in ("unexpected", "released")])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "trace"
    rest = {key: value for key, value in LINE.items() if key != name}
    write_lines(path, json.dumps(rest).encode() + b"\n")
    with pytest.raises(VfioToolError, match=f"{name} is missing"):
        read_trace(str(path))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 20_000, b"\xff", b"\0", b"", b"1" * 5000])
def test_a_line_that_is_no_operation(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "trace"
    write_lines(path, raw + b"\n", json.dumps(LINE).encode() + b"\n")
    with pytest.raises(VfioToolError, match="line 2 of the trace"):
        read_trace(str(path))


UNIT = HEADER["units"][0]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"schema": "vfiotool.stress/1"}, "not the header of a trace"),
        ({"seed": "7"}, "seed is not an integer"),
        ({"kernel": None}, "kernel is not a string"),
        ({"devices": ADDRESS}, "devices is not a list"),
        ({"workloads": [1]}, "workloads is not a string"),
        ({"units": []}, "the header has no unit"),
        ({"units": [3]}, "a unit is not an object"),
        ({"units": [{**UNIT, "group": "3"}]}, "group is not an integer"),
        ({"units": [{**UNIT, "hosts": []}]}, "hosts is not an object"),
        ({"units": [{**UNIT, "members": ["../../etc"]}]}, "'../../etc' is not a full PCI address"),
        ({"units": [{**UNIT, "hosts": {ADDRESS: "../x"}}]}, "'../x' is not a driver's name"),
        ({"units": [{**UNIT, "hosts": {"x": "e1000e"}}]}, "'x' is not a full PCI address"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, change: dict[str, Any], cause: str) -> None:
    path = tmp_path / "trace"
    path.write_text(json.dumps({"schema": "vfiotool.trace/1", **HEADER, **change}) + "\n")
    with pytest.raises(VfioToolError, match=f"line 1 of .*{cause}"):
        read_trace(str(path))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for name in ("fifo", "empty", "missing", ""):
        with pytest.raises(VfioToolError) as caught:
            read_trace(str(tmp_path / name))
        assert caught.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
CHANGED = st.dictionaries(st.sampled_from(sorted(LINE)) | st.text(), JSON, max_size=3)


@given(
    lines=st.lists(
        st.binary(max_size=80)
        | JSON.map(lambda value: json.dumps(value).encode())
        | CHANGED.map(lambda change: json.dumps({**LINE, **change}).encode()),
        max_size=3,
    ),
    end=st.sampled_from([b"", b"\n"]),
)
def test_whatever_a_trace_holds_is_read_or_refused(tmp_path: Path, lines: list[bytes], end: bytes) -> None:
    path = tmp_path / "trace"
    write_lines(path, b"\n".join(lines) + end)
    try:
        trace = read_trace(str(path))
    except VfioToolError:
        return
    for line in trace.lines:
        assert json.loads(json.dumps(line.document(), allow_nan=False)) == line.document()
        line.document()["got"].encode()


# Latencies


@examples(25)
@given(st.lists(st.floats(0, 3.5e9), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_data(data: list[float]) -> None:
    latencies = Latencies()
    for value in data:
        latencies.record("map", value, "0")
    found = latencies.document()["map"]
    ordered = sorted(max(1, round(value)) for value in data)
    for percent in (50, 90, 99):
        rank = max(1, int(percent * len(ordered) / 100 + 0.5))
        true = min(ordered[rank - 1], round(max(data), 1))
        assert true <= found[f"p{percent}_us"] <= true * 1.001 + 1
    assert found["max_us"] == round(max(data), 1)


def test_percentiles_of_many_against_numpy() -> None:
    from numpy import percentile
    from numpy.random import default_rng

    data = default_rng(1).lognormal(4, 2, 50_000)
    latencies = Latencies()
    for value in data:
        latencies.record("open", float(value), "0")
    found = latencies.document()["open"]
    for percent in (50, 90, 99):
        assert found[f"p{percent}_us"] == pytest.approx(float(percentile(data, percent)), rel=0.01)
    assert found["p50_us"] == pytest.approx(statistics.median(data), rel=0.01)
    assert found["count"] == latencies.count == 50_000


def test_errors_are_counted_by_name() -> None:
    latencies = Latencies()
    for code in (0, errno.EBUSY, 0, errno.EPERM, errno.EBUSY):
        latencies.record("bind", 5, errno_name(code))
    latencies.record("unbind", 5e12, "0")
    assert latencies.document()["bind"]["errors"] == {"EBUSY": 2, "EPERM": 1}
    assert latencies.document()["unbind"]["p99_us"] == pytest.approx(3.6e9, rel=0.001)  # an hour at most
    assert latencies.document()["unbind"]["max_us"] == 5e12


def test_names_are_bounded() -> None:
    latencies = Latencies()
    for number in range(1000):
        latencies.record(f"operation {number}", 1, f"E{number}")
        latencies.record("operation 0", 1, f"E{number}")
    found = latencies.document()
    assert len(found) == MOST_NAMES
    assert sum(one["count"] for one in found.values()) == latencies.count == 2000
    assert sum(found["operation 0"]["errors"].values()) == 1001
    assert len(found[OTHERS]["errors"]) == MOST_NAMES
    assert list(latencies.most_frequent(2)) == ["operation 0", OTHERS]


# The verdict and the report

PASSED: dict[str, Any] = {"cycles": 5, "unexpected_count": 0, "findings": [], "restored": True}


@pytest.mark.parametrize("interrupted", [None, "SIGINT", "SIGTERM"])
def test_a_run_without_a_reason_passes(interrupted: str | None) -> None:
    assert judge(**PASSED, interrupted=interrupted) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unexpected_count": 1}, "1 operation gave something else"),
        ({"findings": ["a uevent is missing"]}, "a uevent is missing"),
        ({"restored": False}, "not back on their drivers"),
        ({"interrupted": KILLED}, "killed"),
        ({"cycles": 0}, "the run executed no cycle"),
        (
            {"trace_failure": OSError(errno.ENOSPC, "No space left"), "dropped": 9},
            "No space left.*9 operations are missing",
        ),
    ],
)
def test_each_reason_alone_fails_a_run(change: dict[str, Any], reason: str) -> None:
    reasons = judge(**{**PASSED, **change})
    assert len(reasons) == 1
    assert re.search(reason, reasons[0])
    assert (report(reasons).verdict, report().verdict) == ("fail", "pass")


CONTRACT = (
    "schema kernel era devices workloads seed started seconds cycles operations unexpected unexpected_count "
    "udev probes kernel_log taint resources restored interrupted verdict reasons reproduce"
)
OPERATION = {"count": 4, "errors": {"EBUSY": 1}, "p50_us": 9, "p90_us": 20, "p99_us": 99, "max_us": 100.5}


def report(reasons: tuple[str, ...] = (), **changes: Any) -> Report:
    measured: dict[str, Any] = {
        "udev": {"expected": 1, "received": 1, "missing": [], "duplicated": [], "out_of_order": []},
        "probes": {"vfio_group_release": 3},
        "kernel_log": [],
        "taint": {"before": 0, "after": 0},
        "resources": {"before": {"fds": 3}, "after": {"fds": 3}, "leaked": []},
    }
    measured |= {name: changes.pop(name) for name in measured if name in changes}
    found: dict[str, Any] = {
        "kernel": "6.12.48",
        "era": "cdev",
        "devices": [ADDRESS],
        "workloads": ["group", "dma"],
        "seed": 7,
        "started": utc_text(0),
        "seconds": 1.23456,
        "cycles": 5,
        "operations": {"unbind": OPERATION},
        "unexpected": [],
        "unexpected_count": 0,
        "restored": True,
        "interrupted": None,
        "reasons": reasons,
        "reproduce": "vfiotool stress group dma --seed 7",
    }
    return Report(**{**found, "measured": Measured(**measured), **changes})


def test_a_report_has_the_fields_of_the_contract(tmp_path: Path) -> None:
    unexpected = [Unexpected("unbind", "0", "EBUSY", float(at)) for at in range(MOST_UNEXPECTED + 5)]
    document = report(("because",), unexpected=unexpected, unexpected_count=len(unexpected)).document()
    write_report(str(tmp_path), document)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read == document
    assert " ".join(read) == CONTRACT
    assert (read["schema"], read["started"]) == ("vfiotool.stress/1", "1970-01-01T00:00:00Z")
    assert (read["verdict"], read["reasons"]) == ("fail", ["because"])
    assert len(read["unexpected"]) == MOST_UNEXPECTED
    assert read["unexpected"][1] == {"operation": "unbind", "expected": "0", "got": "EBUSY", "at": 1.0}
    assert read["unexpected_count"] == MOST_UNEXPECTED + 5


def test_a_report_of_a_killed_run_claims_nothing_that_was_not_measured(tmp_path: Path) -> None:
    with TraceWriter(str(tmp_path / "trace.jsonl"), HEADER) as trace:
        trace.write(LINE)
    document = killed_report(str(tmp_path), {**HEADER, "reproduce": "again"}, []).document()
    assert " ".join(document) == CONTRACT
    assert (document["cycles"], document["unexpected_count"], document["interrupted"]) == (1, 1, KILLED)
    assert {*document["udev"].values(), document["probes"], document["kernel_log"]} == {None}
    assert {*document["taint"].values(), *document["resources"].values()} == {None}
    shown = page(tmp_path, document, [LINE]).text
    assert shown.count("Not measured.") == 2  # kernel functions, kernel log


def test_many_findings_are_counted_and_not_all_told() -> None:
    reasons = judge(**{**PASSED, "findings": [f"finding {number}" for number in range(1000)]})
    assert reasons[-1] == "the monitors have 950 more findings"
    assert len(reasons) == 51


def test_a_full_disk_leaves_the_former_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("former")
    document = report().document()
    cannot = pytest.raises(VfioToolError, match=r"report\.json cannot be written: File too large")
    with cannot as caught, files_of_at_most(100):
        write_report(str(tmp_path), document)
    assert "free space" in caught.value.hint
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("report.json", "former")]


def test_a_folder_is_made_and_an_earlier_report_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    prepare_folder(str(folder))
    for name in ("report.json", "trace.jsonl", "report.html", ".report.json.new"):
        (folder / name).touch()
    prepare_folder(str(folder))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "report.json.bak", ".hidden"])
def test_a_folder_of_other_things_is_refused_as_it_is(tmp_path: Path, name: str) -> None:
    names = {name, "report.json"}
    for one in names:
        (tmp_path / one).touch()
    with pytest.raises(VfioToolError, match=f"holds files that are no report: '{name}'") as caught:
        prepare_folder(str(tmp_path))
    assert "empty folder" in caught.value.hint
    assert {one.name for one in tmp_path.iterdir()} == names


def test_a_link_or_a_file_in_the_place_of_a_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/trace.jsonl").symlink_to(tmp_path / "file")
    for name in ("file", "folder"):
        with pytest.raises(VfioToolError):
            prepare_folder(str(tmp_path / name))
    assert (tmp_path / "file").exists()


# The page


class Page(HTMLParser):
    """A page as a browser reads it: its elements, their attributes, and all text."""

    VOID = ("meta",)

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.raw)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, class_: str) -> int:
        return sum(name == tag and found.get("class") == class_ for name, found in self.elements)


def page(path: Path, document: dict[str, Any], lines: Iterable[dict[str, Any]], *labels: str) -> Page:
    write_page(str(path / "report.html"), document, lines, labels)
    return Page(path / "report.html")


def filled(text: str) -> dict[str, Any]:
    """A failed run's document that has a text wherever one can be."""
    one = {**OPERATION, "errors": {text: 1}}
    return report(
        (text,),
        kernel=text,
        devices=[text],
        workloads=[text],
        operations={text: one},
        unexpected=[Unexpected(text, text, text, 1.0)],
        unexpected_count=1,
        udev={"expected": 1, "received": 0, "missing": [text], "duplicated": [], "out_of_order": []},
        probes={text: 1},
        kernel_log=[text],
        resources={"before": {text: 1}, "after": {text: 2}, "leaked": [text]},
        interrupted=text,
        reproduce=text,
    ).document()


HOSTILE = '</title></style><script>alert(\'1\')</script>" onload="x" <!-- &amp; https://example.org [red]'


def test_whatever_a_text_says_it_is_shown_and_nothing_else(tmp_path: Path) -> None:
    line = {
        **LINE,
        "operation": HOSTILE,
        "got": HOSTILE,
        "arguments": {HOSTILE: HOSTILE},
        "workload": HOSTILE,
    }
    found = page(tmp_path, filled(HOSTILE), [line], HOSTILE)
    assert found.text.count(HOSTILE) >= 20
    tags = {tag for tag, _ in found.elements}
    assert tags.isdisjoint(("script", "link", "img", "iframe", "object", "a", "use", "base", "form"))
    names = {name for _, attributes in found.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("href", "src", "style", "xmlns")]
    assert "https://" not in found.raw.replace("https://example.org", "")
    assert "url(" not in found.raw
    assert "@import" not in found.raw


@examples(20)
@given(st.text(max_size=30) | st.text("<>&\"'\\0\x1b\u202e\ud800 ", max_size=30))
def test_any_text_makes_a_page(tmp_path: Path, text: str) -> None:
    found = page(tmp_path, filled(text), [{**LINE, "got": text}], text)
    assert "\x1b" not in found.raw
    assert "\u202e" not in found.raw


def test_a_page_of_many_operations_is_small_and_shows_all_that_is_unexpected(tmp_path: Path) -> None:
    good = {key: value for key, value in LINE.items() if key != "unexpected"}
    lines = ({**(LINE if at % 1000 == 0 else good), "at": at, "unit": at % 3} for at in range(100_000))
    document = report(operations={"SET_CONTAINER": {**OPERATION, "count": 100_000}}).document()
    found = page(tmp_path, document, lines, "group 3", "group 4")
    legend = 1
    assert found.count("polygon", "odd") == 100 + legend
    assert found.count("rect", "refused") == 1500 + legend
    assert len(found.raw) < 1_000_000
    assert "1,600 of 100,000 operations" in found.text
    assert all(label in found.text for label in ("group 3", "group 4", "unit 2"))


def test_a_page_of_many_unexpected_operations_and_units_is_bounded(tmp_path: Path) -> None:
    lines = ({**LINE, "at": at, "unit": at % 100, "got": "x" * 4000} for at in range(10_000))
    found = page(tmp_path, report().document(), lines)
    assert found.count("polygon", "odd") == 500 + 1
    assert found.count("rect", "lane") == 16
    assert "all other groups" in found.text
    assert len(found.raw) < 1_000_000


def test_a_page_of_a_run_that_did_nothing(tmp_path: Path) -> None:
    found = page(
        tmp_path, report(("the run executed no cycle",), operations={}, cycles=0, seconds=0.0).document(), []
    )
    assert "Failed" in found.text
    assert "the run executed no cycle" in found.text


def test_a_page_of_a_killed_run_says_what_is_not_known(tmp_path: Path) -> None:
    unknown = {"before": None, "after": None}
    document = report(
        (KILLED,), interrupted=KILLED, taint=unknown, resources={**unknown, "leaked": []}
    ).document()
    assert "Ended early by killed" not in page(tmp_path, document, [LINE]).text


def test_a_page_shows_the_kernel_log_and_counts_of_what_is_not_listed(tmp_path: Path) -> None:
    entry = {"kind": "bug", "text": "kernel BUG at <vfio.c>:1", "at": 12.5, "where": "notifier+0x10/0x20"}
    uevent = {"action": "bind", "subsystem": "pci", "address": ADDRESS, "group": 3, "seqnum": 4711}
    udev = {**report().measured.udev, "missing": [uevent], "counts": {"missing": 4321}}
    found = page(tmp_path, report(kernel_log=[entry], udev=udev).document(), [])
    shown = "bug  kernel BUG at <vfio.c>:1\nat 12.500000 s, in notifier+0x10/0x20"
    assert [
        text
        for text in (shown, "4,321", f"bind pci {ADDRESS} (group 3, seqnum 4711)")
        if text not in found.text
    ] == []


def test_a_page_tells_what_the_report_has(tmp_path: Path) -> None:
    found = page(tmp_path, report(interrupted="SIGTERM").document(), [LINE])
    stop = ("Passed", "6.12.48", "cdev", "1970-01-01 00:00:00 UTC", "vfiotool stress group dma --seed 7",
            "vfio_group_release", "by SIGTERM, after 1.2 s", "9 µs", "99 µs", "EBUSY")  # fmt: skip
    assert [text for text in stop if text not in found.text] == []


def test_a_full_disk_leaves_the_former_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("former")
    cannot = pytest.raises(VfioToolError, match=r"report\.html cannot be written")
    with cannot, files_of_at_most(1000):
        write_page(str(tmp_path / "report.html"), report().document(), [LINE])
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("report.html", "former")]


def test_decades_are_as_wide_as_each_other() -> None:
    scale = LogScale.around([3.0, 80_000.0], 10, 110)
    assert [scale.at(10.0**power) for power in range(6)] == [10, 30, 50, 70, 90, 110]
    assert scale.at(0) == scale.at(1)
    assert scale.ticks(3) == [1, 100, 10_000]


@pytest.mark.parametrize(("most", "ticks"), [(8.0, 9), (600.0, 7), (0.001, 6), (3.3e6, 7)])
def test_ticks_are_round_and_within(most: float, ticks: int) -> None:
    found = TimeScale(most, 0, 100).ticks()
    assert len(found) == ticks
    assert found[-1] <= most * 1.0001


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0.4, "0.4 µs"), (9.5, "9.5 µs"), (99, "99 µs"), (999.4, "999 µs"), (999.9, "1 ms"), (1500, "1.5 ms"),
        (9970, "10 ms"),
        (12_345, "12 ms"), (1e6, "1 s"), (59.9e6, "60 s"), (61e6, "1 min 1 s"), (3661e6, "1 h 1 min"),
    ],
)  # fmt: skip
def test_durations(us: float, text: str) -> None:
    assert duration(us) == text


# The progress of a run

PROGRESS = RunProgress(
    seconds=61,
    cycles=12_500,
    operations=100_000,
    rate_cycles_s=203.54,
    latencies={"unbind [bold]": OPERATION},
    uevents_expected=12,
    uevents_received=11,
    findings=["first", "lost \x1b[2J uevent [red]"],
    jobs=["map [x] pages"],
)


class Clock:
    """Time that passes when a test says so."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_off_a_terminal_there_is_a_line_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay([ADDRESS], ["group"], seconds=60, stream=stream, clock=clock) as board:
        for _ in range(250):
            clock.seconds += 0.1
            board.update(PROGRESS)
    line = (
        "1 min 1 s: 12,500 cycles (203.5 a second), 100,000 operations, 11 of 12 uevents, "
        "2 findings, the last: lost ?[2J uevent [red]\n"
    )
    assert stream.getvalue() == line * 2


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A terminal of 100 columns, and what was written to it since it was last asked for."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    master, slave = os.openpty()
    os.set_blocking(master, False)
    with open(slave, "w", encoding="utf-8") as stream:

        def written() -> str:
            stream.flush()
            chunks = []
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(master, 1 << 16):
                    chunks.append(chunk)
            return b"".join(chunks).decode()

        yield stream, written
    os.close(master)


def test_on_a_terminal_texts_are_shown_as_they_are(terminal: tuple[TextIO, Callable[[], str]]) -> None:
    stream, written = terminal
    with ProgressDisplay([ADDRESS], ["group", "dma"], cycles=25_000, stream=stream, clock=Clock()) as board:
        board.update(PROGRESS)
        shown = written()
    texts = ("group + dma on 0000:01:00.0", "50%", "12,500", "203.5", "11/12", "unbind [bold]", "99 µs",
             "! lost ?[2J uevent [red]", "map [x] pages", "! first")  # fmt: skip
    assert [text for text in texts if text not in shown] == []
    assert "\x1b[2J" not in shown
    assert "\x1b[?25h" in written()  # the cursor is back


def test_a_terminal_is_refreshed_five_times_a_second(terminal: tuple[TextIO, Callable[[], str]]) -> None:
    stream, written = terminal
    clock = Clock()
    refreshed = 0
    with ProgressDisplay([ADDRESS], ["group"], stream=stream, clock=clock) as board:
        written()
        for _ in range(1000):
            board.update(PROGRESS)
            refreshed += bool(written())
            clock.seconds += 0.001
    assert refreshed == 5


def test_a_display_that_ends_by_an_error_gives_the_terminal_back(
    terminal: tuple[TextIO, Callable[[], str]],
) -> None:
    stream, written = terminal

    def interrupted() -> None:
        with ProgressDisplay([ADDRESS], ["group"], stream=stream) as board:
            board.update(PROGRESS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in written()


def test_list_loads_nothing_of_all_this(host: FakeHost) -> None:
    program = (
        "import sys; from vfiotool import cli; "
        "status = cli.run(['--sysroot', sys.argv[1], 'list', '--json']); "
        "print(status, [name for name in ('hdrh', 'rich', 'vfiotool.stress') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, host.tree.path("/")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "0 []"
