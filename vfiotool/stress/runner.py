"""A run: devices are taken, workers work on them, monitors watch, and all is given back and judged."""

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
from vfiotool.stress.cleanup import CleanupProcess
from vfiotool.stress.config import RunConfig
from vfiotool.stress.groups import kernel_model
from vfiotool.stress.lease import GIVE_BACK_SECONDS, DeviceLease
from vfiotool.stress.model.lifecycle import Model
from vfiotool.stress.monitors.monitor_set import MonitorSet
from vfiotool.stress.monitors.resources import (
    LeakScan,
    Resources,
    leaked,
    read_resources,
    read_taint,
    taint_findings,
)
from vfiotool.stress.monitors.stuck_tasks import StuckTaskMonitor
from vfiotool.stress.operations.registry import GroupOperations
from vfiotool.stress.results.report import TRACE, Report, judge, of_header, prepare_folder, utc_text
from vfiotool.stress.results.stats import RunStats
from vfiotool.stress.results.trace import TraceWriter
from vfiotool.stress.workers import BATCH, WorkerPool
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


class ProgressSink(Protocol):
    """What shows a run as it goes."""

    @property
    def due(self) -> bool:
        """Say whether it would show anything now."""

    def show(self, **fields: Any) -> None:
        """Show how far the run has come."""


class StopRequest:
    """What told the run to end: a signal's name, if any did."""

    by: str | None = None


def run(config: RunConfig, progress: ProgressSink, stop: StopRequest) -> Report:
    """Do it, and return what was found. Devices are given back whatever happens.

    Raises:
        UnsupportedError: no group has what it takes for a workload.
        RefusedError, BindError, BlockedError: the devices cannot be taken; see ``DeviceLease``.
        VfioToolError: the report's folder cannot be used.
    """
    tree = Tree()
    model = kernel_model(tree, config.state_dir)
    require_possible(config, model)
    prepare_folder(config.report)
    header = trace_header(config, model, tree)
    with CleanupProcess(config, header) as cleanup, TraceWriter(f"{config.report}/{TRACE}", header) as trace:
        before = _Before(tree)
        lease = DeviceLease(config.addresses, config.state_dir, config.allowed, tell=cleanup.will_take)
        patience = GIVE_BACK_SECONDS
        try:
            current = Run(config, model, tree, RunStats(trace), progress, stop)
            current.perform()
            if current.has_crashed:
                patience = _AFTER_CRASH_SECONDS
        finally:
            lost = lease.give_back(patience)
        return current.report(header, before, lost)


def require_possible(config: RunConfig, model: Model) -> None:
    """Refuse a workload that no group of the order has what it takes for.

    Raises:
        UnsupportedError: there is one; ``all`` leaves such out.
    """
    if config.repeated:
        return
    all_operations = [GroupOperations(model, group) for group in config.groups]
    for name in config.workloads:
        lacks = [WORKLOADS[name].lacks(operations) for operations in all_operations]
        if all(lacks) and set(config.workloads) != set(WORKLOADS):
            raise UnsupportedError(
                f"the workload {name} cannot be done on {', '.join(config.addresses)}: it lacks {lacks[0]}",
                hint="name devices that have it, or another workload",
            )


def trace_header(config: RunConfig, model: Model, tree: Tree) -> dict[str, Any]:
    """Return what a trace and a report say of a run before it begins."""
    return {
        "kernel": kernel_release(tree),
        "era": str(model.era.value),
        "devices": config.addresses,
        "workloads": list(config.workloads),
        "seed": config.seed,
        "units": [{"members": list(group.members), "hosts": dict(group.hosts)} for group in config.groups],
        "started": utc_text(time.time()),
        "reproduce": config.reproduce,
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


class Run:
    """One run, from the first worker to the last."""

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        tree: Tree,
        stats: RunStats,
        progress: ProgressSink,
        stop: StopRequest,
    ) -> None:
        self._config = config
        self._model = model
        self._stats = stats
        self._progress = progress
        self._stop = stop
        self._monitors = MonitorSet(tree, model.era, config.addresses)
        self._tasks = StuckTaskMonitor(_PATIENCE_SECONDS)
        self._died: list[str] = []
        self._begun = now()
        self._seconds = 0.0
        self._looked = 0.0

    @property
    def has_crashed(self) -> bool:
        """Say whether the kernel has logged a bug: what it then holds locked, stays so."""
        return "bug" in self._monitors.kernel_log.counts

    def perform(self) -> None:
        """Have the workers work until they end, or must."""
        with contextlib.closing(self._monitors):
            until = None if self._config.duration is None else self._begun + self._config.duration
            workers = WorkerPool(self._config, self._model, until, self._monitors.leave_to_parent)
            try:
                self._follow(workers)
            finally:
                workers.abandon()
            self._seconds = now() - self._begun
            self._settle()

    def report(self, header: dict[str, Any], before: _Before, lost: list[str]) -> Report:
        """Judge the run."""
        after, taint, findings = before.findings()
        stats = self._stats
        stats.trace.close()
        leaked_now = [*stats.leaked, *findings]
        parts = self._monitors.document()
        reasons = judge(
            cycles=stats.cycles,
            unexpected_count=stats.unexpected_count,
            findings=[*self._monitors.findings(), *self._died, *self._tasks.findings(), *leaked_now, *lost],
            restored=not lost,
            interrupted=self._stop.by,
            trace_failure=stats.trace.failure,
            dropped=stats.trace.dropped,
        )
        return Report(
            **of_header(header),
            seconds=self._seconds,
            cycles=stats.cycles,
            operations=stats.latencies.document(),
            unexpected=stats.unexpected,
            unexpected_count=stats.unexpected_count,
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
            interrupted=self._stop.by,
            reasons=reasons,
        )

    def _follow(self, workers: WorkerPool) -> None:
        """Take what workers send until all have ended, or none that is left ever will."""
        deadline: float | None = None
        while workers.running:
            is_busy = self._take(workers)
            self._monitors.feed(workers.heard)
            self._monitors.read()
            self._look(workers)
            if deadline is None and self._must_end():
                workers.tell_to_end()
                deadline = now() + _END_SECONDS
            if self._is_in_vain(workers, deadline):
                return
            if not is_busy:
                time.sleep(_REST_SECONDS)
        self._died += [
            f"a worker ended with status {worker.status} in: {worker.status_line.read()}"
            for worker in workers.all
            if worker.status
        ]

    def _take(self, workers: WorkerPool) -> bool:
        """Take what has been sent, and say whether there may be more at once."""
        is_busy = False
        for sent in workers.receive(_TICK_SECONDS):
            is_busy |= len(sent.records) >= BATCH
            for group, addresses in sent.watch:
                self._monitors.watch(group, addresses)
            for record in sent.records:
                self._stats.add(record)
                self._monitors.note(record)
            self._stats.cycles += sent.cycles
            self._stats.add_leaks(sent.leaked)
        return is_busy

    def _must_end(self) -> bool:
        stats = self._stats
        return (
            self._stop.by is not None
            or stats.unexpected_count >= _MOST_UNEXPECTED
            or stats.trace.failure is not None
            or self.has_crashed
        )

    def _is_in_vain(self, workers: WorkerPool, deadline: float | None) -> bool:
        """Say whether to wait no longer: for a task that is stuck, or that was told to end and does not."""
        if self._tasks.findings():
            return True
        silent = [worker for worker in workers.running if now() - worker.spoke > _SILENCE_SECONDS]
        self._died += [
            f"a worker has done nothing for {_SILENCE_SECONDS:g} s: {worker.status_line.read()}"
            for worker in silent
        ]
        if silent:
            return True
        if deadline is not None and now() > deadline:
            self._died.append(f"workers did not end within {_END_SECONDS:g} s")
            return True
        return False

    def _look(self, workers: WorkerPool) -> None:
        """Once a second: tasks that are stuck, and the trace on disk for whom the run is killed under."""
        if now() - self._looked >= _LOOK_SECONDS:
            self._looked = now()
            self._tasks.look(workers.processes(), now())
            self._stats.trace.flush()
        if self._progress.due:
            self._progress.show(**self._view(workers))

    def _view(self, workers: WorkerPool) -> dict[str, Any]:
        seconds = now() - self._begun
        udev = self._monitors.uevents.document()
        return {
            "seconds": seconds,
            "cycles": self._stats.cycles,
            "operations": self._stats.operations,
            "rate_cycles_s": self._stats.cycles / seconds if seconds else 0.0,
            "latencies": self._stats.most_frequent(_SHOWN),
            "uevents_expected": udev["expected"],
            "uevents_received": udev["received"],
            "findings": [*self._unexpected(), *self._monitors.findings()],
            "jobs": [worker.status_line.read() for worker in workers.running],
        }

    def _unexpected(self) -> Iterator[str]:
        for one in self._stats.unexpected[:_SHOWN]:
            yield f"{one.operation}: {one.got}, not {one.expected}"

    def _settle(self) -> None:
        """Give what was sent the time to come."""
        deadline = now() + _SETTLE_SECONDS
        while now() < deadline and not self._is_settled():
            time.sleep(_TICK_SECONDS)
        self._monitors.finish()

    def _is_settled(self) -> bool:
        self._monitors.read()
        self._monitors.feed(now())
        return self._monitors.is_settled()
