"""The documents of the same commands on the same machine have the fields that version 0.1.0 wrote, and more.

``tests/data`` holds what 0.1.0 wrote on Linux 6.12 and the default machine: the fields of each document,
and a trace of ``stress``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest import EDU, KERNEL, MACHINE, as_before, done, settle, vfiotool
from tests.support.json_fields import fields

DATA = Path(__file__).parents[1] / "data"
FIELDS = json.loads((DATA / "fields-0.1.0.json").read_text())
TRACE = DATA / "trace-0.1.0.jsonl"

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.skipif((KERNEL, MACHINE) != ("6.12", "default"), reason="the data is of 6.12 and 'default'"),
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(path: Path) -> list[dict[str, Any]]:
    """Return the records of a trace without their times."""
    return [{**line, "at": None, "us": None} for line in lines(path)[1:]]


def test_documents_have_the_fields_of_0_1_0() -> None:
    with as_before(EDU):
        for expected in FIELDS["documents"]:
            # 0.1.0 showed a link of parts of the root complex, which have none.
            wanted = {field for field in expected["fields"] if not field.startswith("link.")}
            assert wanted <= set(fields(done(*expected["command"].split()))), expected["command"]
            settle()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report folder of the run of which the data has the trace."""
    folder = tmp_path_factory.mktemp("report") / "same"
    header = lines(TRACE)[0]
    arguments = [*header["reproduce"].split()[1:], "--report", str(folder)]
    result = vfiotool(*arguments)
    assert result.status == 0, result
    return folder


@pytest.mark.full
def test_a_report_has_the_fields_of_0_1_0(report: Path) -> None:
    assert fields(json.loads((report / "report.json").read_text())) == FIELDS["report"]


@pytest.mark.full
def test_the_same_seed_gives_the_trace_of_0_1_0(report: Path) -> None:
    trace = report / "trace.jsonl"
    assert results(trace) == results(TRACE)
    assert lines(trace)[0].keys() == lines(TRACE)[0].keys()


def test_a_trace_of_0_1_0_replays(tmp_path: Path) -> None:
    result = vfiotool("stress", "replay", str(TRACE), "--report", str(tmp_path / "replayed"))
    assert result.status == 0, result
    assert [line["operation"] for line in results(tmp_path / "replayed/trace.jsonl")] == [
        line["operation"] for line in results(TRACE)
    ]
