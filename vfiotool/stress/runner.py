"""A run: take the devices, let workers execute, watch with monitors, give the devices back, and judge."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
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
from vfiotool.stress.results.report import TRACE, Measured, Report, build_report, prepare_folder, utc_text
from vfiotool.stress.results.stats import RunStats
from vfiotool.stress.results.trace import TraceWriter
from vfiotool.stress.workers import BATCH, WorkerPool
from vfiotool.stress.workloads import WORKLOADS

_TICK_SECONDS = 0.2
_REST_SECONDS = 0.2
"""The pause between two receptions, unless much arrives: the run takes CPU time from the watched machine."""
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
_SETTLE_SECONDS = 5.0
_SILENCE_SECONDS = 180.0
"""No call takes so long: the longest is a minute, for the bus lock."""
_END_SECONDS = 90.0
_AFTER_CRASH_SECONDS = 2.0
_MOST_UNEXPECTED = 20
_SHOWN = 6


class ProgressSink(Protocol):
    """Shows the progress of a run."""

    @property
    def due(self) -> bool:
        """Return True if an update would be shown now."""

    def show(self, **fields: Any) -> None:
        """Show the progress."""


class StopRequest:
    """The request to stop a run: ``by`` is the name of the signal, or None."""

    by: str | None = None


def run(config: RunConfig, progress: ProgressSink, stop: StopRequest) -> Report:
    """Execute a run and return its report. The devices are given back after any outcome.

    Raises:
        UnsupportedError: no group supports a workload.
        RefusedError, BindError, BlockedError: the devices cannot be taken; see ``DeviceLease``.
        VfioToolError: the report folder cannot be used.
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
            current.execute()
            if current.has_crashed:
                patience = _AFTER_CRASH_SECONDS
        finally:
            lost = lease.give_back(patience)
        return current.report(header, before, lost)


def require_possible(config: RunConfig, model: Model) -> None:
    """Refuse a workload that no group supports. The workload ``all`` leaves out unsupported workloads.

    Raises:
        UnsupportedError: no group supports a workload.
    """
    if config.repeated:
        return
    groups = [GroupOperations(model, group) for group in config.groups]
    for name in config.workloads:
        lacks = [WORKLOADS[name].lacks(operations) for operations in groups]
        if all(lacks) and set(config.workloads) != set(WORKLOADS):
            raise UnsupportedError(
                f"{', '.join(config.addresses)} cannot run the workload {name}: the group lacks {lacks[0]}",
                hint="name devices that have it, or another workload",
            )


def trace_header(config: RunConfig, model: Model, tree: Tree) -> dict[str, Any]:
    """Return the header of the trace; the report has these fields too."""
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
    """The taint, the resources and the known leaks before the run."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.taint = read_taint(tree)
        self.leaks = LeakScan()
        self.resources = self._read()

    def findings(self) -> tuple[Resources, int, list[str]]:
        """Return the present resources and taint, and a finding for each defect."""
        after, taint = self._read(), read_taint(self._tree)
        leaks = [f"kmemleak: {' '.join(text.split())}" for text in self.leaks.scan()]
        return after, taint, [*leaked(self.resources, after), *leaks, *taint_findings(self.taint, taint)]

    def _read(self) -> Resources:
        return read_resources((os.getpid(),), self._tree)


class Run:
    """One run, from the start of the first worker to the exit of the last. Only one thread may use a run."""

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
        self._worker_findings: list[str] = []
        self._begun = now()
        self._seconds = 0.0
        self._looked = 0.0

    @property
    def has_crashed(self) -> bool:
        """Return True if the kernel logged a bug. The kernel never releases the locks that it holds then."""
        return "bug" in self._monitors.kernel_log.counts

    def execute(self) -> None:
        """Let the workers execute until they exit, or must stop."""
        with contextlib.closing(self._monitors):
            until = None if self._config.duration is None else self._begun + self._config.duration
            workers = WorkerPool(self._config, self._model, until, self._monitors.leave_to_parent)
            try:
                self._follow(workers)
            finally:
                workers.abandon()
            self._seconds = now() - self._begun
            self._settle()

    def report(self, header: Mapping[str, Any], before: _Before, lost: list[str]) -> Report:
        """Judge the run. ``lost`` are the devices that could not be given back, with the reasons."""
        after, taint, findings = before.findings()
        stats = self._stats
        stats.trace.close()
        leaks = [*stats.leaked, *findings]
        return build_report(
            header,
            seconds=self._seconds,
            cycles=stats.cycles,
            operations=stats.latencies.document(),
            unexpected=stats.unexpected,
            unexpected_count=stats.unexpected_count,
            measured=Measured(
                **self._monitors.document(),
                taint={"before": before.taint, "after": taint},
                resources={
                    "before": before.resources.document(),
                    "after": after.document(),
                    "leaked": leaks,
                    "stuck": self._tasks.document(),
                },
            ),
            findings=[
                *self._monitors.findings(),
                *self._worker_findings,
                *self._tasks.findings(),
                *leaks,
                *lost,
            ],
            restored=not lost,
            interrupted=self._stop.by,
            trace_failure=stats.trace.failure,
            dropped=stats.trace.dropped,
        )

    def _follow(self, workers: WorkerPool) -> None:
        """Receive messages until all workers have exited, or none of the others ever will."""
        deadline: float | None = None
        while workers.running:
            is_busy = self._receive(workers)
            self._monitors.feed(workers.heard)
            self._monitors.read()
            self._look(workers)
            if deadline is None and self._must_stop():
                workers.request_stop()
                deadline = now() + _END_SECONDS
            if self._tasks.findings():
                return
            if given_up := self._hopeless(workers, deadline):
                self._worker_findings += given_up
                return
            if not is_busy:
                time.sleep(_REST_SECONDS)
        self._worker_findings += [
            f"a worker exited with status {worker.status} in: {worker.status_line.read()}"
            for worker in workers.all
            if worker.status
        ]

    def _receive(self, workers: WorkerPool) -> bool:
        """Process all received messages. Return True if more may be ready at once."""
        is_busy = False
        for message in workers.receive(_TICK_SECONDS):
            is_busy |= len(message.records) >= BATCH
            for group, addresses in message.watch:
                self._monitors.watch(group, addresses)
            for record in message.records:
                self._stats.add(record)
                self._monitors.note(record)
            self._stats.cycles += message.cycles
            self._stats.add_leaks(message.leaked)
        return is_busy

    def _must_stop(self) -> bool:
        stats = self._stats
        return (
            self._stop.by is not None
            or stats.unexpected_count >= _MOST_UNEXPECTED
            or stats.trace.failure is not None
            or self.has_crashed
        )

    def _hopeless(self, workers: WorkerPool, deadline: float | None) -> list[str]:
        """Return why the run must not wait for the workers any longer; an empty list if the run must wait."""
        silent = [worker for worker in workers.running if now() - worker.spoke > _SILENCE_SECONDS]
        if silent:
            return [
                f"a worker has done nothing for {_SILENCE_SECONDS:g} s: {worker.status_line.read()}"
                for worker in silent
            ]
        if deadline is not None and now() > deadline:
            return [f"workers did not exit within {_END_SECONDS:g} s"]
        return []

    def _look(self, workers: WorkerPool) -> None:
        """Once a second, look for stuck tasks, and flush the trace in case the run is killed."""
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
        for found in self._stats.unexpected[:_SHOWN]:
            yield f"{found.operation}: {found.got}, not {found.expected}"

    def _settle(self) -> None:
        """Wait until the monitors have received the last events, at most some seconds."""
        deadline = now() + _SETTLE_SECONDS
        while now() < deadline and not self._is_settled():
            time.sleep(_TICK_SECONDS)
        self._monitors.finish()

    def _is_settled(self) -> bool:
        self._monitors.read()
        self._monitors.feed(now())
        return self._monitors.is_settled()
