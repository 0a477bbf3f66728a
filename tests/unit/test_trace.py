"""The trace of a stress run: what is written is read again, and a damaged file is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stress_results import ADDRESS, HEADER, LINE, RECORD, files_of_at_most
from vfiotool.errors import ClosedError, VfioToolError
from vfiotool.stress.record import Call, Expectation, Outcome, Record, TraceLine
from vfiotool.stress.results.trace import Trace, TraceWriter, read_trace, sample_trace


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


def test_a_written_trace_is_read_again(tmp_path: Path) -> None:
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


def test_a_line_has_the_fields_of_its_record(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", LINE)
    (line,) = read_trace(str(tmp_path / "trace")).lines
    assert line.document() == LINE


def test_flushed_lines_survive_a_killed_run(tmp_path: Path) -> None:
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


def test_a_whole_last_line_without_a_newline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write_lines(path, json.dumps(LINE).encode())
    trace = read_trace(str(path))
    assert (len(trace.lines), trace.cut) == (1, False)


def test_a_long_text_is_clipped_to_the_length_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write_trace(path, {**LINE, "got": "\0" * 1_000_000})
    assert 100 < len(read_trace(str(path)).lines[0].got) < 10_000


def test_a_trace_of_0_1_0_is_read_as_it_was_written() -> None:
    path = Path(__file__).parents[1] / "data/trace-0.1.0.jsonl"
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    trace = read_trace(str(path))
    assert (trace.header, trace.cut) == (header, False)
    assert [line.document() for line in trace.lines] == lines


def test_half_a_surrogate_is_written_as_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write_trace(path, {**LINE, "got": "\udc80"})
    assert read_trace(str(path)).lines[0].got == "?"


def test_a_closed_trace_refuses_lines(tmp_path: Path) -> None:
    trace = TraceWriter(str(tmp_path / "trace"), HEADER)
    trace.close()
    trace.close()
    with pytest.raises(ClosedError):
        trace.write(LINE)


def test_a_trace_that_cannot_be_created(tmp_path: Path) -> None:
    with pytest.raises(VfioToolError, match="No such file or directory") as caught:
        TraceWriter(str(tmp_path / "nowhere/trace"), HEADER)
    assert caught.value.hint


def test_a_full_device_does_not_raise() -> None:
    with TraceWriter("/dev/full", HEADER) as trace:
        for _ in range(1000):
            trace.write(LINE)
    assert trace.failure is not None
    assert (trace.failure.errno, trace.dropped) == (errno.ENOSPC, 1000)


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


def test_a_sample_has_a_share_of_the_lines_and_every_unexpected_one(tmp_path: Path) -> None:
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
def test_a_line_that_is_not_an_operation_is_refused(tmp_path: Path, raw: bytes) -> None:
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


def test_a_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
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
def test_any_content_of_a_trace_is_read_or_refused(tmp_path: Path, lines: list[bytes], end: bytes) -> None:
    path = tmp_path / "trace"
    write_lines(path, b"\n".join(lines) + end)
    try:
        trace = read_trace(str(path))
    except VfioToolError:
        return
    for line in trace.lines:
        assert json.loads(json.dumps(line.document(), allow_nan=False)) == line.document()
        line.document()["got"].encode()
