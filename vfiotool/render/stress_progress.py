"""The progress of a stress run: a live panel on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vfiotool.render.formats import duration
from vfiotool.util.text import printable

_REFRESH_SECONDS = 0.2
_LINE_SECONDS = 10.0
_FRAME = 8  # columns of a panel's border, beside its title
_MOST_DEVICES = 8
_MOST_FINDINGS = 5
_MOST_JOBS = 8
_MOST_OPERATIONS = 8


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The state of a run. ``seconds`` is the elapsed time, ``rate_cycles_s`` the cycles per second.

    ``latencies`` has count, p50_us and p99_us for each operation to show, ``findings`` the messages of the
    monitors, ``jobs`` the present activity of each job.
    """

    seconds: float
    cycles: int
    operations: int
    rate_cycles_s: float
    latencies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    uevents_expected: int = 0
    uevents_received: int = 0
    findings: Sequence[str] = ()
    jobs: Sequence[str] = ()


class ProgressDisplay:
    """Shows progress on stderr during a ``with`` block; the panel on a terminal is removed at the end.

    ``seconds`` and ``cycles`` are the goal of the run, or ``None``. Check ``due`` before you make an update
    that is expensive. Not thread-safe.
    """

    def __init__(
        self,
        devices: Sequence[str],
        workloads: Sequence[str],
        *,
        seconds: float | None = None,
        cycles: int | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workloads, self._devices = " + ".join(workloads), devices
        self._seconds = seconds
        self._cycles = cycles
        self._clock = clock
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream, highlight=False)
        self._live = self._make_live() if self._stream.isatty() and self._console.is_interactive else None
        self._next = 0.0

    @property
    def due(self) -> bool:
        """True if an update would be shown now: five times a second on a terminal, else every ten seconds."""
        return self._clock() >= self._next

    def update(self, progress: RunProgress) -> None:
        """Show the progress if an update is due."""
        if not self.due:
            return
        if self._live:
            self._next = self._clock() + _REFRESH_SECONDS
            self._live.update(self._drawn(progress), refresh=True)
        else:
            self._next = self._clock() + _LINE_SECONDS
            self._stream.write(printable(_line(progress)) + "\n")
            self._stream.flush()

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._live.start()
        else:
            self._next = self._clock() + _LINE_SECONDS
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def _make_live(self) -> Live:
        """Return the live panel. It starts no thread and redirects no stream, because a run forks."""
        return Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def _drawn(self, progress: RunProgress) -> RenderableType:
        title = f"{self._workloads} on {' '.join(self._devices)}"
        has_room = len(title) <= self._console.width - _FRAME
        parts: list[RenderableType] = [] if has_room else [_literal(_few(self._devices))]
        parts += [self._bar(progress), _numbers(progress)]
        if progress.latencies:
            parts += [Text(), _latencies(progress.latencies)]
        jobs = progress.jobs[:_MOST_JOBS]
        if jobs:
            parts.append(Text())
        for number, job in enumerate(jobs):
            parts.append(Text.assemble((f"job {number}  ", "dim"), _literal(job)))
        parts += _findings(progress.findings)
        heading = _literal(title if has_room else self._workloads, style="bold")
        return Panel(Group(*parts), title=heading, title_align="left", border_style=_tone(progress))

    def _bar(self, progress: RunProgress) -> RenderableType:
        """Return a bar with the reached share of the goal; without a goal, only the elapsed time."""
        goals = ((self._seconds, progress.seconds), (self._cycles, progress.cycles))
        shares = [done / goal for goal, done in goals if goal]
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        elapsed = duration(progress.seconds * 1e6)
        if not shares:
            grid.add_row(elapsed, "")
            return grid
        share = min(max(shares), 1.0)
        grid.add_row(
            f"{elapsed}  {share:4.0%}",
            ProgressBar(total=1.0, completed=share, complete_style=_tone(progress)),
        )
        return grid


def _numbers(progress: RunProgress) -> Text:
    uevents = f"{progress.uevents_received:,}/{progress.uevents_expected:,}"
    found = len(progress.findings)
    return Text.assemble(
        (f"{progress.cycles:,}", "bold"), (" cycles  ", "dim"),
        (f"{progress.rate_cycles_s:,.1f}", "bold"), (" a second  ", "dim"),
        (f"{progress.operations:,}", "bold"), (" operations  ", "dim"),
        (uevents, "bold"), (" uevents  ", "dim"),
        (f"{found:,}", "bold red" if found else "bold green"), (" findings", "dim"),
    )  # fmt: skip


def _latencies(latencies: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("operation", overflow="fold")
    for heading in ("count", "p50", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in list(latencies.items())[:_MOST_OPERATIONS]:
        table.add_row(
            _literal(name), f"{found['count']:,}", duration(found["p50_us"]), duration(found["p99_us"])
        )
    return table


def _findings(findings: Sequence[str]) -> list[Text]:
    """Return lines for the last findings, which are the newest."""
    if not findings:
        return []
    shown = [_literal(f"! {finding}", style="red") for finding in findings[-_MOST_FINDINGS:]]
    more = len(findings) - len(shown)
    return [Text(), *([Text(f"{more:,} earlier findings", style="dim")] if more else []), *shown]


def _few(devices: Sequence[str]) -> str:
    """Return the first devices, and how many more there are: a panel is not higher than its terminal."""
    more = len(devices) - _MOST_DEVICES
    return " ".join(devices[:_MOST_DEVICES]) + (f" and {more} more" if more > 0 else "")


def _literal(text: str, *, style: str = "") -> Text:
    """Return text without markup: brackets are literal, and control characters are replaced."""
    return Text(printable(text), style=style)


def _tone(progress: RunProgress) -> str:
    return "red" if progress.findings else "green"


def _line(progress: RunProgress) -> str:
    last = f", the last: {progress.findings[-1]}" if progress.findings else ""
    parts = (
        f"{progress.cycles:,} cycles ({progress.rate_cycles_s:,.1f} a second)",
        f"{progress.operations:,} operations",
        f"{progress.uevents_received:,} of {progress.uevents_expected:,} uevents",
        f"{len(progress.findings):,} findings{last}",
    )
    return f"{duration(progress.seconds * 1e6)}: {', '.join(parts)}"
