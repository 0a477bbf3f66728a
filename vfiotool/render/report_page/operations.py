"""The table of operations: counts, errors, and latencies on a common logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfiotool.render.formats import NONE, duration
from vfiotool.render.report_page.markup import Markup, element, joined
from vfiotool.render.report_page.scales import LogScale

_WIDTH, _HEIGHT, _MIDDLE = 320, 24, 12.0
_PERCENTILES = ("p50_us", "p90_us", "p99_us", "max_us")
_HEADINGS = ("p50", "p90", "p99", "max")


def table(operations: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return the table, sorted by count, the highest first."""
    found = sorted(operations.items(), key=lambda item: (-item[1]["count"], item[0]))
    values = (one[key] for _, one in found for key in _PERCENTILES)
    scale = LogScale.around(values, 20, _WIDTH - 20)
    numbers = [element("th", text, class_="number") for text in ("count", *_HEADINGS)]
    head = element(
        "tr", element("th", "operation"), *numbers, element("th", _axis(scale)), element("th", "errors")
    )
    rows = [_row(name, one, scale) for name, one in found]
    return element("table", element("thead", head), element("tbody", *rows), class_="operations")


def legend() -> Markup:
    """Return the legend of the latency drawings."""
    scale = LogScale(0, 2, 8, 92)
    example = _whisker({"p50_us": 2, "p90_us": 9, "p99_us": 30, "max_us": 90}, scale, width=100)
    return element("p", element("span", example, "p50 to p90, p99, maximum"), class_="legend")


def _row(name: str, one: Mapping[str, Any], scale: LogScale) -> Markup:
    times = [element("td", duration(one[key]), class_="number") for key in _PERCENTILES]
    errors = [
        joined((element("span", code, class_="errno"), f" {count:,} "))
        for code, count in one["errors"].items()
    ]
    return element(
        "tr",
        element("td", element("code", name)),
        element("td", f"{one['count']:,}", class_="number"),
        *times,
        element("td", _whisker(one, scale), class_="drawing"),
        element("td", *errors or (NONE,), class_="errors"),
    )


def _axis(scale: LogScale) -> Markup:
    ticks = [
        element("text", duration(us), x=scale.at(us), y=_HEIGHT - 6, text_anchor="middle")
        for us in scale.ticks(5)
    ]
    return _svg(_WIDTH, ticks)


def _whisker(one: Mapping[str, Any], scale: LogScale, width: int = _WIDTH) -> Markup:
    p50, p90, p99, most = (scale.at(one[key]) for key in _PERCENTILES)
    grid = [
        element("line", x1=scale.at(us), x2=scale.at(us), y1=0, y2=_HEIGHT, class_="grid")
        for us in scale.ticks(20)
    ]
    parts = [
        element("line", x1=p50, x2=most, y1=_MIDDLE, y2=_MIDDLE, class_="whisker"),
        element(
            "rect", x=p50, y=_MIDDLE - 3, width=round(max(p99 - p50, 2), 1), height=6, rx=1, class_="p99"
        ),
        element(
            "rect", x=p50, y=_MIDDLE - 5, width=round(max(p90 - p50, 2), 1), height=10, rx=2, class_="p90"
        ),
        element("circle", cx=most, cy=_MIDDLE, r=2.6, class_="most"),
    ]
    return _svg(width, [*grid, *parts])


def _svg(width: int, parts: list[Markup]) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {width} {_HEIGHT}", width=width, height=_HEIGHT)
