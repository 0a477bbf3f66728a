"""The report page: all texts are escaped and shown, and its size is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.report_page import page
from tests.support.strategies import examples
from tests.support.stress_results import ADDRESS, LINE, OPERATION, files_of_at_most, report
from vfiotool.errors import VfioToolError
from vfiotool.render.formats import duration
from vfiotool.render.report_page import write_page
from vfiotool.render.report_page.scales import LogScale, TimeScale
from vfiotool.stress.results.report import (
    KILLED,
    Unexpected,
)


def filled(text: str) -> dict[str, Any]:
    """Return the document of a failed run with ``text`` in every text field."""
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


def test_hostile_texts_are_shown_and_make_no_elements(tmp_path: Path) -> None:
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


def test_a_page_of_many_operations_is_small_and_shows_every_unexpected_one(tmp_path: Path) -> None:
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


def test_a_page_of_a_run_without_operations(tmp_path: Path) -> None:
    found = page(
        tmp_path, report(("the run executed no cycle",), operations={}, cycles=0, seconds=0.0).document(), []
    )
    assert "Failed" in found.text
    assert "the run executed no cycle" in found.text


def test_a_page_of_a_killed_run_names_no_signal(tmp_path: Path) -> None:
    unknown = {"before": None, "after": None}
    document = report(
        (KILLED,), interrupted=KILLED, taint=unknown, resources={**unknown, "leaked": []}
    ).document()
    assert "Ended early by killed" not in page(tmp_path, document, [LINE]).text


def test_a_page_shows_the_kernel_log_and_the_counts_beyond_the_lists(tmp_path: Path) -> None:
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


def test_a_page_shows_the_fields_of_the_report(tmp_path: Path) -> None:
    found = page(tmp_path, report(interrupted="SIGTERM").document(), [LINE])
    texts = ("Passed", "6.12.48", "cdev", "1970-01-01 00:00:00 UTC", "vfiotool stress group dma --seed 7",
            "vfio_group_release", "by SIGTERM, after 1.2 s", "9 µs", "99 µs", "EBUSY")  # fmt: skip
    assert [text for text in texts if text not in found.text] == []


def test_a_full_disk_leaves_the_former_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("former")
    cannot = pytest.raises(VfioToolError, match=r"report\.html cannot be written")
    with cannot, files_of_at_most(1000):
        write_page(str(tmp_path / "report.html"), report().document(), [LINE])
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("report.html", "former")]


def test_decades_have_equal_widths() -> None:
    scale = LogScale.around([3.0, 80_000.0], 10, 110)
    assert [scale.at(10.0**power) for power in range(6)] == [10, 30, 50, 70, 90, 110]
    assert scale.at(0) == scale.at(1)
    assert scale.ticks(3) == [1, 100, 10_000]


@pytest.mark.parametrize(("most", "ticks"), [(8.0, 9), (600.0, 7), (0.001, 6), (3.3e6, 7)])
def test_ticks_are_round_and_inside_the_scale(most: float, ticks: int) -> None:
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
