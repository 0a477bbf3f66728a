"""The timeline: a lane for each group, with operations by time (x) and latency (y)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vfiotool.render.formats import duration
from vfiotool.render.report_page.markup import Markup, element, joined
from vfiotool.render.report_page.scales import LogScale, TimeScale

_MOST_ORDINARY = 1500
_MOST_UNEXPECTED = 500
_MOST_LANES = 16
_MOST_TEXT = 200
_LEFT, _RIGHT, _LANE, _GAP, _AXIS = 64.0, 1064.0, 96.0, 30.0, 26.0

Marks = Sequence[Mapping[str, Any]]


class _Reservoir:
    """A uniform random sample of a stream of unknown length; the same stream gives the same sample."""

    def __init__(self, most: int) -> None:
        self.items: list[Mapping[str, Any]] = []
        self._most = most
        self._seen = 0
        self._random = random.Random(0)  # noqa: S311 - the same sample every time

    def add(self, item: Mapping[str, Any]) -> None:
        self._seen += 1
        if len(self.items) < self._most:
            self.items.append(item)
        elif (place := self._random.randrange(self._seen)) < self._most:
            self.items[place] = item


def choose(lines: Iterable[Mapping[str, Any]]) -> Marks:
    """Return a sample of a trace's lines: at most 1,500 expected and 500 unexpected operations."""
    ordinary, unexpected = _Reservoir(_MOST_ORDINARY), _Reservoir(_MOST_UNEXPECTED)
    for line in lines:
        (unexpected if line.get("unexpected") else ordinary).add(line)
    return sorted(ordinary.items, key=_at) + sorted(
        unexpected.items, key=_at
    )  # unexpected operations are drawn last, on top


def draw(marks: Marks, labels: Sequence[str]) -> Markup:
    """Return the drawing; ``labels`` has the label of each group."""
    units = sorted({int(mark["unit"]) for mark in marks})
    lanes = {unit: min(place, _MOST_LANES - 1) for place, unit in enumerate(units)}
    begun = min(map(_at, marks))
    time = TimeScale(max(max(map(_at, marks)) - begun, 1e-3), _LEFT, _RIGHT)
    scale = LogScale.around((mark["us"] for mark in marks), _LANE, 0)
    height = (max(lanes.values()) + 1) * (_LANE + _GAP) + _AXIS
    drawn: list[Markup] = []
    for unit, lane in lanes.items():
        is_last = lane == _MOST_LANES - 1
        if not is_last or unit == units[lane]:
            is_shared = is_last and len(units) > _MOST_LANES
            drawn.append(_lane(_top(lane), scale, "all other groups" if is_shared else _label(unit, labels)))
    drawn += _time_axis(time, height - _AXIS)
    drawn += (_mark(mark, time.at(_at(mark) - begun), _top(lanes[mark["unit"]]), scale) for mark in marks)
    box = f"0 0 {_RIGHT + 16:g} {height:g}"
    return element("svg", *drawn, viewBox=box, class_="timeline", role="img", aria_label="timeline")


def legend() -> Markup:
    """Return the legend of the marks' shapes and colours."""
    kinds = (("done", "succeeded"), ("refused", "refused, as expected"), ("odd", "unexpected"))
    items = [
        element("span", element("svg", _form(kind, 6, 6), viewBox="0 0 12 12", class_="key"), text)
        for kind, text in kinds
    ]
    return element("p", *items, class_="legend")


def _at(mark: Mapping[str, Any]) -> float:
    return float(mark["at"])


def _top(lane: int) -> float:
    return lane * (_LANE + _GAP) + _GAP


def _label(unit: int, labels: Sequence[str]) -> str:
    return labels[unit] if unit < len(labels) else f"unit {unit}"


def _time_axis(time: TimeScale, bottom: float) -> Iterator[Markup]:
    for seconds in time.ticks():
        x = time.at(seconds)
        yield element("line", x1=x, x2=x, y1=_GAP, y2=bottom, class_="grid")
        shown = f"{seconds:g} s" if time.most >= 1 else f"{seconds * 1000:g} ms"
        yield element("text", shown, x=x, y=bottom + 18, text_anchor="middle")


def _lane(top: float, scale: LogScale, label: str) -> Markup:
    parts = [
        element("rect", x=_LEFT, y=top, width=_RIGHT - _LEFT, height=_LANE, class_="lane"),
        element("text", label[:_MOST_TEXT], x=_LEFT, y=top - 8, class_="label"),
    ]
    for us in scale.ticks(4):
        y = top + scale.at(us)
        parts.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", duration(us), x=_LEFT - 8, y=y + 4, text_anchor="end"))
    return joined(parts)


def _mark(mark: Mapping[str, Any], x: float, top: float, scale: LogScale) -> Markup:
    y = round(top + scale.at(mark["us"]), 1)
    if mark.get("unexpected"):
        stem = element("line", x1=x, x2=x, y1=y, y2=top + _LANE, class_="stem")
        return joined((stem, _form("odd", x, y, _tooltip(mark))))
    got = str(mark["got"])
    return _form("done" if got.startswith("0") else "refused", x, y, _tooltip(mark))


def _form(kind: str, x: float, y: float, *children: Markup) -> Markup:
    if kind == "done":
        return element("circle", *children, cx=x, cy=y, r=2.4, class_=kind)
    if kind == "refused":
        return element("rect", *children, x=round(x - 2.2, 1), y=round(y - 2.2, 1), class_=kind)
    points = f"{x},{y - 6:.1f} {x + 6:.1f},{y} {x},{y + 6:.1f} {x - 6:.1f},{y}"
    return element("polygon", *children, points=points, class_=kind)


def _tooltip(mark: Mapping[str, Any]) -> Markup:
    arguments = "".join(f" {key}={value}" for key, value in mark["arguments"].items())
    operation = f"{mark['operation']}{arguments}"[:_MOST_TEXT]
    end = f" (expected {str(mark['expected'])[:_MOST_TEXT]})" if mark.get("unexpected") else ""
    text = f"{operation}: {str(mark['got'])[:_MOST_TEXT]}{end}, {duration(mark['us'])}, {mark['workload']}"
    return element("title", text)
