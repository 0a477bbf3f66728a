"""Finds lines in the kernel's log that report a defect; gives their kind and their place in the kernel."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vfiotool.events.entry import TimelineEntry
from vfiotool.stress.monitors.samples import Samples, times

_KINDS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("blocked", r"blocked until (device is released|released by user)"),
        ("hung task", r"INFO: task .+ blocked (for more than|in I/O wait)"),
        ("stall", r"INFO: rcu.* detected .*\bstalls?\b|rcu.*self-detected stall|soft lockup|hard LOCKUP"),
        (
            "lockdep",
            r"possible (circular|recursive) locking|possible irq lock inversion|inconsistent .*lock state"
            r"|INFO: lockdep|suspicious RCU usage|lock held when returning|still has locks held"
            r"|held lock freed|bad unlock balance|bad contention detected|unsafe lock order detected"
            r"|[Ii]nvalid wait context|Nested lock was not taken|trying to register non-static key"
            r"|BUG: MAX_LOCK|BUG: MAX_STACK_TRACE|DEBUG_LOCKS_WARN_ON",
        ),
        ("kasan", r"BUG: (KASAN|KFENCE|KMSAN):"),
        ("ubsan", r"UBSAN:"),
        ("atomic", r"BUG: sleeping function called|scheduling while atomic"),
        ("refcount", r"refcount_t: "),
        ("leak", r"kmemleak: \d+ new suspected memory leaks"),
        ("iommu fault", r"DMAR: \[|DMAR: DRHD: handling fault|AMD-Vi: .*Event logged"),
        (
            "bug",
            r"kernel BUG at |\bBUG: |\bOops\b|^general protection fault|[Uu]nable to handle kernel"
            r"|kernel NULL pointer|Internal error: |Kernel panic",
        ),
        ("warning", r"\bWARNING: "),
    )
)
"""The first pattern that matches a line gives the kind."""
_ANY = re.compile("|".join(f"(?:{pattern.pattern})" for _, pattern in _KINDS))
_DEATHS = ("bug", "stall")
_DYING = re.compile(r"\bOops\b|general protection fault|invalid opcode: |Internal error: |Kernel panic")
_PLACE = re.compile(r"[\w./-]+\.[chS]:\d+")
_FUNCTION = re.compile(r"(?: at [\w./-]+:\d+|:\d+ at|BUG: (?:KASAN|KFENCE|KMSAN): .+ in) ([\w.]+)\+0x")
_DIED_IN = re.compile(r"(?:RIP: 0010:|\bpc : )([\w.]+)\+0x")
_REPORT = 60
"""The most lines of an oops report before the line with the function that failed."""


@dataclass(slots=True)
class LogLine:
    """A line that reports a defect. ``at`` is CLOCK_MONOTONIC in seconds, ``where`` a place in the kernel."""

    kind: str
    text: str
    at: float
    where: str

    def document(self) -> dict[str, Any]:
        """Return the line in the form of the report."""
        return {"kind": self.kind, "text": self.text, "at": round(self.at, 6), "where": self.where}


class KernelLogMonitor:
    """Judges the kernel's log during a run. Only one thread may use a monitor."""

    def __init__(self) -> None:
        self._lines = Samples[LogLine]()
        self._counts = Counter[str]()
        self._missed = 0
        self._dying: LogLine | None = None
        self._place = ""
        self._report_ends = 0
        self._seen = 0
        self._announced = 0
        self._waits: dict[str, Samples[LogLine]] = {}
        self._is_finished = False

    def expect_blocked(self) -> None:
        """Expect that one unbind blocks: the kernel's message about one blocked unbind is no finding then."""
        self._announced += 1

    def see(self, entry: TimelineEntry) -> None:
        """Judge an entry of the source ``kmsg``."""
        if entry.event == "missed":
            self._missed += 1
            return
        self._seen += 1
        if self._dying is not None and self._belongs(self._dying, entry.detail):
            return
        kind = classify(entry.detail)
        if kind:
            self._add(LogLine(kind, entry.detail, entry.time, _where(entry.detail)))

    def finish(self) -> None:
        """End the observation: the count of blocked unbinds is complete now."""
        self._is_finished = True

    def findings(self) -> list[str]:
        """Return the findings, one sentence for each kind and place."""
        alike: dict[tuple[str, str], list[LogLine]] = {}
        for line in self._lines.first:
            alike.setdefault((line.kind, line.where), []).append(line)
        found = [
            f"the kernel logged a line of the kind {kind}{f' in {where}' if where else ''}, "
            f"{times(len(lines))}: {lines[0].text}"
            for (kind, where), lines in alike.items()
        ]
        if more := self._lines.count - len(self._lines.first):
            found.append(f"the kernel logged {more} more lines that report a defect")
        found += [
            f"an unbind blocked unexpectedly, {times(count)}: {line.text}"
            for line, count in self._unannounced()
        ]
        if self._missed:
            found.append(
                f"records of the kernel's log were lost before they were read, {times(self._missed)}"
            )
        return found

    def document(self) -> list[dict[str, Any]]:
        """Return ``kernel_log`` of the report: the first hundred."""
        lines = [*self._lines.first, *(line for line, _ in self._unannounced())]
        return [line.document() for line in lines]

    @property
    def counts(self) -> dict[str, int]:
        """The number of lines of each kind, expected blocked unbinds included."""
        return dict(self._counts)

    def _add(self, line: LogLine) -> None:
        self._counts[line.kind] += 1
        if line.kind == "blocked":
            wording = line.text.rpartition("blocked until ")[2]
            self._waits.setdefault(wording, Samples()).add(line)
            return
        self._lines.add(line)
        self._dying = line if line.kind in _DEATHS else None
        self._place = line.where
        self._report_ends = self._seen + _REPORT

    def _belongs(self, dying: LogLine, text: str) -> bool:
        """Return True if a line belongs to the report of an oops; add the failed function to that report."""
        if self._seen > self._report_ends:
            self._dying = None
            return False
        died = _DIED_IN.search(text)
        if died and dying.where == self._place:
            dying.where = f"{died[1]} at {self._place}" if self._place else died[1]
        return died is not None or _DYING.search(text) is not None

    def _unannounced(self) -> list[tuple[LogLine, int]]:
        """Return, for each wording, the last message about a surplus blocked unbind, and the surplus.

        One blocked unbind can cause both wordings: the device logs the begin, VFIO logs an interruption.
        The message and the expectation arrive in any order.
        """
        if not self._is_finished:
            return []
        return [
            (waits.first[-1], waits.count - self._announced)
            for waits in self._waits.values()
            if waits.count > self._announced
        ]


def classify(text: str) -> str:
    """Return the kind of defect that a line reports, ``""`` if none."""
    if not _ANY.search(text):
        return ""
    return next(kind for kind, pattern in _KINDS if pattern.search(text))


def _where(text: str) -> str:
    """Return the function and the place in the source that a line names."""
    function, place = _FUNCTION.search(text), _PLACE.search(text)
    return " at ".join([*([function[1]] if function else []), *([place[0]] if place else [])])
