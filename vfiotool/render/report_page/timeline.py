"""The layout of the timeline: a lane for each group, with operations by time (x) and latency (y)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfiotool.render.formats import duration
from vfiotool.render.report_page.scales import LogScale, TimeScale

_MOST_ORDINARY = 1500
_MOST_UNEXPECTED = 500
_MOST_LANES = 16
_MOST_TEXT = 200
_LEFT, _RIGHT, _LANE, _GAP, _AXIS = 64.0, 1064.0, 96.0, 30.0, 26.0

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TimelineLane:
    """The lane of a group, or of all groups that have no lane of their own; ``top`` is in pixels."""

    top: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """An operation in a lane: ``kind`` is done, refused or odd, ``x`` and ``y`` are in pixels."""

    kind: str
    x: float
    y: float
    lane: TimelineLane
    tooltip: str


@dataclass(frozen=True, slots=True)
class TimelineLayout:
    """The parts of the drawing, in pixels. ``times`` are positions and texts on the axis of time."""

    lanes: Sequence[TimelineLane]
    marks: Sequence[Mark]
    times: Sequence[tuple[float, str]]
    scale: LogScale
    bottom: float
    left: float = _LEFT
    right: float = _RIGHT
    lane_height: float = _LANE

    @property
    def width(self) -> str:
        """The width of the drawing."""
        return f"{_RIGHT + 16:g}"

    @property
    def height(self) -> str:
        """The height of the drawing, with the axis of time."""
        return f"{self.bottom + _AXIS:g}"


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


def sample(lines: Iterable[Mapping[str, Any]]) -> Lines:
    """Return a sample of a trace's lines: at most 1,500 expected and 500 unexpected operations.

    The unexpected operations are last, so that they are drawn on top.
    """
    ordinary, unexpected = _Reservoir(_MOST_ORDINARY), _Reservoir(_MOST_UNEXPECTED)
    for line in lines:
        (unexpected if line.get("unexpected") else ordinary).add(line)
    return sorted(ordinary.items, key=_at) + sorted(unexpected.items, key=_at)


def lay_out(lines: Lines, labels: Sequence[str]) -> TimelineLayout | None:
    """Return the timeline of lines, or ``None`` without lines; ``labels`` has the label of each group."""
    if not lines:
        return None
    begun = min(map(_at, lines))
    time = TimeScale(max(max(map(_at, lines)) - begun, 1e-3), _LEFT, _RIGHT)
    scale = LogScale.around((line["us"] for line in lines), _LANE, 0)
    lanes = _lanes(sorted({int(line["unit"]) for line in lines}), labels)
    marks = [_mark(line, time.at(_at(line) - begun), lanes[line["unit"]], scale) for line in lines]
    used = list(dict.fromkeys(lanes.values()))
    times = [(time.at(seconds), _time_text(seconds, time.most)) for seconds in time.ticks()]
    return TimelineLayout(used, marks, times, scale, bottom=len(used) * (_LANE + _GAP))


def _lanes(units: Sequence[int], labels: Sequence[str]) -> dict[int, TimelineLane]:
    """Return the lane of each unit; the units beyond the most lanes share the last lane."""
    known = [labels[unit] if unit < len(labels) else f"unit {unit}" for unit in units[:_MOST_LANES]]
    if len(units) > _MOST_LANES:
        known[-1] = "all other groups"
    lanes = [
        TimelineLane(place * (_LANE + _GAP) + _GAP, label[:_MOST_TEXT]) for place, label in enumerate(known)
    ]
    return {unit: lanes[min(place, _MOST_LANES - 1)] for place, unit in enumerate(units)}


def _at(line: Mapping[str, Any]) -> float:
    return float(line["at"])


def _time_text(seconds: float, most: float) -> str:
    return f"{seconds:g} s" if most >= 1 else f"{seconds * 1000:g} ms"


def _mark(line: Mapping[str, Any], x: float, lane: TimelineLane, scale: LogScale) -> Mark:
    y = round(lane.top + scale.at(line["us"]), 1)
    is_done = str(line["got"]).startswith("0")
    kind = "odd" if line.get("unexpected") else "done" if is_done else "refused"
    return Mark(kind, x, y, lane, _tooltip(line))


def _tooltip(line: Mapping[str, Any]) -> str:
    arguments = "".join(f" {key}={value}" for key, value in line["arguments"].items())
    operation = f"{line['operation']}{arguments}"[:_MOST_TEXT]
    end = f" (expected {str(line['expected'])[:_MOST_TEXT]})" if line.get("unexpected") else ""
    return f"{operation}: {str(line['got'])[:_MOST_TEXT]}{end}, {duration(line['us'])}, {line['workload']}"
