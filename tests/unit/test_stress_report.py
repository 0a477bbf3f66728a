"""The verdict and the report of a stress run."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.report_page import page
from tests.support.stress_results import HEADER, LINE, files_of_at_most, report
from vfiotool.errors import VfioToolError
from vfiotool.stress.cleanup import killed_report
from vfiotool.stress.results.report import (
    KILLED,
    MOST_UNEXPECTED,
    Unexpected,
    judge,
    prepare_folder,
    write_report,
)
from vfiotool.stress.results.trace import TraceWriter

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


def test_a_report_of_a_killed_run_is_null_where_nothing_was_measured(tmp_path: Path) -> None:
    with TraceWriter(str(tmp_path / "trace.jsonl"), HEADER) as trace:
        trace.write(LINE)
    document = killed_report(str(tmp_path), {**HEADER, "reproduce": "again"}, []).document()
    assert " ".join(document) == CONTRACT
    assert (document["cycles"], document["unexpected_count"], document["interrupted"]) == (1, 1, KILLED)
    assert {*document["udev"].values(), document["probes"], document["kernel_log"]} == {None}
    assert {*document["taint"].values(), *document["resources"].values()} == {None}
    shown = page(tmp_path, document, [LINE]).text
    assert shown.count("Not measured.") == 2  # kernel functions, kernel log


def test_many_findings_are_counted_and_not_all_listed() -> None:
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


def test_a_folder_is_created_and_an_earlier_report_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    prepare_folder(str(folder))
    for name in ("report.json", "trace.jsonl", "report.html", ".report.json.new"):
        (folder / name).touch()
    prepare_folder(str(folder))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "report.json.bak", ".hidden"])
def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path, name: str) -> None:
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
