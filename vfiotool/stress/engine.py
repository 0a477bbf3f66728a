"""A run: devices are taken, performers work on them, monitors watch, and all is given back and judged."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Protocol

from vfiotool.errors import UnsupportedError
from vfiotool.events.entry import now
from vfiotool.host.era import kernel_release
from vfiotool.host.tree import Tree
from vfiotool.stress.cast import Cast
from vfiotool.stress.jobs import Jobs
from vfiotool.stress.keeper import Keeper
from vfiotool.stress.model import Model
from vfiotool.stress.monitors.resources import (
    LeakScan,
    Resources,
    leaked,
    read_resources,
    read_taint,
    taint_findings,
)
from vfiotool.stress.monitors.tasks import TaskMonitor
from vfiotool.stress.order import Order, kernel_model
from vfiotool.stress.performer import BATCH
from vfiotool.stress.report import TRACE, Report, judge, of_header, prepare_folder, utc_text
from vfiotool.stress.taking import GIVE_BACK_SECONDS, Taking
from vfiotool.stress.tally import Tally
from vfiotool.stress.trace import TraceWriter
from vfiotool.stress.watchers import Watchers
from vfiotool.stress.workloads import WORKLOADS

_TICK_SECONDS = 0.2
_REST_SECONDS = 0.2
"""Between two looks at what was sent, unless there is much: each takes the machine from what is watched."""
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
_SETTLE_SECONDS = 5.0
_SILENCE_SECONDS = 180.0
"""No operation waits for so long: a minute for the bus is the longest."""
_END_SECONDS = 90.0
_AFTER_CRASH_SECONDS = 2.0
_MOST_UNEXPECTED = 20
_SHOWN = 6


class Screen(Protocol):
    """What shows a run as it goes."""

    @property
    def due(self) -> bool:
        """Say whether it would show anything now."""

    def show(self, **fields: Any) -> None:
        """Show how far the run has come."""


class Told:
    """What told the run to end: a signal's name, if any did."""

    by: str | None = None


def run(order: Order, screen: Screen, told: Told) -> Report:
    """Do it, and return what was found. Devices are given back whatever happens.

    Raises:
        UnsupportedError: no group has what it takes for a workload.
        RefusedError, BindError, BlockedError: the devices cannot be taken; see ``Taking``.
        VfioToolError: the report's folder cannot be used.
    """
    tree = Tree()
    model = kernel_model(tree, order.state_dir)
    require_possible(order, model)
    prepare_folder(order.report)
    header = trace_header(order, model, tree)
    with Keeper(order, header) as keeper, TraceWriter(f"{order.report}/{TRACE}", header) as trace:
        before = _Before(tree)
        taking = Taking(order.addresses, order.state_dir, order.allowed, tell=keeper.will_take)
        patience = GIVE_BACK_SECONDS
        try:
            execution = _Execution(order, model, tree, Tally(trace), screen, told)
            execution.perform()
            if execution.has_crashed:
                patience = _AFTER_CRASH_SECONDS
        finally:
            lost = taking.give_back(patience)
        return execution.report(header, before, lost)


def require_possible(order: Order, model: Model) -> None:
    """Refuse a workload that no group of the order has what it takes for.

    Raises:
        UnsupportedError: there is one; ``all`` leaves such out.
    """
    if order.repeated:
        return
    casts = [Cast(model, unit) for unit in order.units]
    for name in order.workloads:
        lacks = [WORKLOADS[name].lacks(cast) for cast in casts]
        if all(lacks) and set(order.workloads) != set(WORKLOADS):
            raise UnsupportedError(
                f"the workload {name} cannot be done on {', '.join(order.addresses)}: it lacks {lacks[0]}",
                hint="name devices that have it, or another workload",
            )


def trace_header(order: Order, model: Model, tree: Tree) -> dict[str, Any]:
    """Return what a trace and a report say of a run before it begins."""
    return {
        "kernel": kernel_release(tree),
        "era": str(model.era.value),
        "devices": order.addresses,
        "workloads": list(order.workloads),
        "seed": order.seed,
        "units": [{"members": list(unit.members), "hosts": dict(unit.hosts)} for unit in order.units],
        "started": utc_text(time.time()),
        "reproduce": order.reproduce,
    }


class _Before:
    """What there was before the run."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.taint = read_taint(tree)
        self.leaks = LeakScan()
        self.resources = self._read()

    def findings(self) -> tuple[Resources, int, list[str]]:
        """Return what there is now, and what is wrong with it."""
        after, taint = self._read(), read_taint(self._tree)
        leaks = [f"kmemleak: {' '.join(text.split())}" for text in self.leaks.scan()]
        return after, taint, [*leaked(self.resources, after), *leaks, *taint_findings(self.taint, taint)]

    def _read(self) -> Resources:
        return read_resources((os.getpid(),), self._tree)


class _Execution:
    """One run, from the first performer to the last."""

    def __init__(
        self, order: Order, model: Model, tree: Tree, tally: Tally, screen: Screen, told: Told
    ) -> None:
        self._order = order
        self._model = model
        self._tally = tally
        self._screen = screen
        self._told = told
        self._watchers = Watchers(tree, model.era, order.addresses)
        self._tasks = TaskMonitor(_PATIENCE_SECONDS)
        self._died: list[str] = []
        self._begun = now()
        self._seconds = 0.0
        self._looked = 0.0

    @property
    def has_crashed(self) -> bool:
        """Say whether the kernel has logged a bug: what it then holds locked, stays so."""
        return "bug" in self._watchers.kernel_log.counts

    def perform(self) -> None:
        """Have the performers work until they end, or must."""
        with contextlib.closing(self._watchers):
            until = None if self._order.duration is None else self._begun + self._order.duration
            jobs = Jobs(self._order, self._model, until, self._watchers.leave_to_parent)
            try:
                self._follow(jobs)
            finally:
                jobs.abandon()
            self._seconds = now() - self._begun
            self._settle()

    def report(self, header: dict[str, Any], before: _Before, lost: list[str]) -> Report:
        """Judge the run."""
        after, taint, findings = before.findings()
        tally = self._tally
        tally.trace.close()
        leaked_now = [*tally.leaked, *findings]
        parts = self._watchers.document()
        reasons = judge(
            cycles=tally.cycles,
            unexpected_count=tally.unexpected_count,
            findings=[*self._watchers.findings(), *self._died, *self._tasks.findings(), *leaked_now, *lost],
            restored=not lost,
            interrupted=self._told.by,
            trace_failure=tally.trace.failure,
            dropped=tally.trace.dropped,
        )
        return Report(
            **of_header(header),
            seconds=self._seconds,
            cycles=tally.cycles,
            operations=tally.latencies.document(),
            unexpected=tally.unexpected,
            unexpected_count=tally.unexpected_count,
            udev=parts["udev"],
            probes=parts["probes"],
            kernel_log=parts["kernel_log"],
            taint={"before": before.taint, "after": taint},
            resources={
                "before": before.resources.document(),
                "after": after.document(),
                "leaked": leaked_now,
                "stuck": self._tasks.document(),
            },
            restored=not lost,
            interrupted=self._told.by,
            reasons=reasons,
        )

    def _follow(self, jobs: Jobs) -> None:
        """Take what performers send until all have ended, or none that is left ever will."""
        deadline: float | None = None
        while jobs.running:
            is_busy = self._take(jobs)
            self._watchers.feed(jobs.heard)
            self._watchers.read()
            self._look(jobs)
            if deadline is None and self._must_end():
                jobs.tell_to_end()
                deadline = now() + _END_SECONDS
            if self._is_in_vain(jobs, deadline):
                return
            if not is_busy:
                time.sleep(_REST_SECONDS)
        self._died += [
            f"a performer ended with status {job.status} in: {job.placard.read()}"
            for job in jobs.all
            if job.status
        ]

    def _take(self, jobs: Jobs) -> bool:
        """Take what has been sent, and say whether there may be more at once."""
        is_busy = False
        for sent in jobs.receive(_TICK_SECONDS):
            is_busy |= len(sent.records) >= BATCH
            for group, addresses in sent.watch:
                self._watchers.watch(group, addresses)
            for record in sent.records:
                self._tally.add(record)
                self._watchers.note(record)
            self._tally.cycles += sent.cycles
            self._tally.add_leaks(sent.leaked)
        return is_busy

    def _must_end(self) -> bool:
        tally = self._tally
        return (
            self._told.by is not None
            or tally.unexpected_count >= _MOST_UNEXPECTED
            or tally.trace.failure is not None
            or self.has_crashed
        )

    def _is_in_vain(self, jobs: Jobs, deadline: float | None) -> bool:
        """Say whether to wait no longer: for a task that is stuck, or that was told to end and does not."""
        if self._tasks.findings():
            return True
        silent = [job for job in jobs.running if now() - job.spoke > _SILENCE_SECONDS]
        self._died += [
            f"a performer has done nothing for {_SILENCE_SECONDS:g} s: {job.placard.read()}" for job in silent
        ]
        if silent:
            return True
        if deadline is not None and now() > deadline:
            self._died.append(f"performers did not end within {_END_SECONDS:g} s")
            return True
        return False

    def _look(self, jobs: Jobs) -> None:
        """Once a second: tasks that are stuck, and the trace on disk for whom the run is killed under."""
        if now() - self._looked >= _LOOK_SECONDS:
            self._looked = now()
            self._tasks.look(jobs.processes(), now())
            self._tally.trace.flush()
        if self._screen.due:
            self._screen.show(**self._view(jobs))

    def _view(self, jobs: Jobs) -> dict[str, Any]:
        seconds = now() - self._begun
        udev = self._watchers.uevents.document()
        return {
            "seconds": seconds,
            "cycles": self._tally.cycles,
            "operations": self._tally.operations,
            "rate_cycles_s": self._tally.cycles / seconds if seconds else 0.0,
            "latencies": self._tally.most_frequent(_SHOWN),
            "uevents_expected": udev["expected"],
            "uevents_received": udev["received"],
            "findings": [*self._unexpected(), *self._watchers.findings()],
            "jobs": [job.placard.read() for job in jobs.running],
        }

    def _unexpected(self) -> Iterator[str]:
        for one in self._tally.unexpected[:_SHOWN]:
            yield f"{one.operation}: {one.got}, not {one.expected}"

    def _settle(self) -> None:
        """Give what was sent the time to come."""
        deadline = now() + _SETTLE_SECONDS
        while now() < deadline and not self._is_settled():
            time.sleep(_TICK_SECONDS)
        self._watchers.finish()

    def _is_settled(self) -> bool:
        self._watchers.read()
        self._watchers.feed(now())
        return self._watchers.is_settled()
