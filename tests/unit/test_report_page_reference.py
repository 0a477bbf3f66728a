"""Report pages against reference pages: a page keeps its texts and drawings when its code changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.report_page import Page
from tests.support.stress_results import ADDRESS, LINE, OPERATION, report
from vfiotool.render.report_page import write_page
from vfiotool.stress.results.report import KILLED, Unexpected

REFERENCES = Path(__file__).parent / "report_page"
SIBLING = "0000:01:00.1"
LABELS = [f"{ADDRESS} {SIBLING}", "0000:02:00.0"]
UEVENT = {"action": "bind", "subsystem": "pci", "address": ADDRESS, "group": 3, "seqnum": 4711}
NOTHING = {"before": None, "after": None}

DOCUMENTS: dict[str, dict[str, Any]] = {
    "failed": report(
        ("1 operation gave something else", "a uevent of <group> 3 & 4 is missing"),
        devices=[ADDRESS, SIBLING],
        operations={
            "unbind": OPERATION,
            "SET_CONTAINER": {**OPERATION, "count": 12_345, "errors": {}, "max_us": 2.5e6},
            "open": {**OPERATION, "errors": {"EBUSY": 3, "EPERM": 1_200}},
        },
        unexpected=[Unexpected("open 'a' \"b\"", "0", "EBUSY", 1.25)] * 201,
        unexpected_count=400,
        udev={
            "expected": 2,
            "received": 1,
            "missing": [UEVENT, "odd"],
            "duplicated": [],
            "out_of_order": [{"action": "add"}],
            "counts": {"missing": 4321},
        },
        kernel_log=[
            {"kind": "bug", "text": "kernel BUG at <vfio.c>:1\n  line 2", "at": 12.5, "where": "put+0x1/0x2"},
            {"text": "no kind", "at": 2.0, "where": ""},
            "a line",
        ],
        taint={"before": 0, "after": 512},
        resources={"before": {"fds": 3}, "after": {"fds": 4, "groups": 1}, "leaked": ["fds: 3 -> 4"]},
        restored=False,
        interrupted="SIGTERM",
    ).document(),
    "passed": report(cycles=1).document(),
    "killed": report(
        (KILLED,),
        interrupted=KILLED,
        operations={},
        cycles=0,
        udev=dict.fromkeys(("expected", "received", "missing", "duplicated", "out_of_order")),
        probes=None,
        kernel_log=None,
        taint=NOTHING,
        resources={**NOTHING, "leaked": None},
        restored=False,
    ).document(),
}
GOOD = {**{key: value for key, value in LINE.items() if key != "unexpected"}, "got": "0"}
LINES: dict[str, list[dict[str, Any]]] = {
    "failed": [
        {**GOOD, "at": 1.0},
        {**GOOD, "at": 2.5, "got": "EBUSY", "us": 900},
        {**LINE, "at": 3.0, "unit": 1},
        {**GOOD, "at": 4.0, "unit": 2, "us": 1.5e6},
    ],
    "passed": [{**GOOD, "at": 1.0 + at / 10_000, "unit": at} for at in range(20)],
    "killed": [],
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_page_has_the_texts_and_drawings_of_its_reference(tmp_path: Path, name: str) -> None:
    write_page(str(tmp_path / "report.html"), DOCUMENTS[name], LINES[name], LABELS)
    shown, reference = Page(tmp_path / "report.html"), Page(REFERENCES / f"{name}.html")
    assert shown.structure == reference.structure
