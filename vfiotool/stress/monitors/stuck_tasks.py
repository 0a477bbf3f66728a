"""Finds tasks that are stuck in the kernel: in state D, in one function, for too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vfiotool.stress.monitors.samples import Samples
from vfiotool.util.tasks import Task, uninterruptible_tasks


@dataclass(slots=True)
class _Stay:
    """The stay of a task in one function. ``since`` is in seconds of the caller's clock."""

    since: float
    task: Task
    is_reported: bool = False

    def is_same(self, task: Task, now: float) -> bool:
        """Return True if the task has not left the function since.

        A task that makes progress sleeps many times a second. A task that waits with a timeout wakes now and
        then: a blocked unbind wakes every 10 seconds.
        """
        return task.place == self.task.place and task.switches - self.task.switches <= now - self.since


class StuckTaskMonitor:
    """Samples tasks. ``patience`` is in seconds. Only one thread may use a monitor."""

    def __init__(self, patience: float, proc: str = "/proc") -> None:
        self._patience = patience
        self._proc = proc
        self._stays: dict[int, _Stay] = {}
        self._stuck = Samples[tuple[Task, float]]()

    def look(self, pids: Iterable[int], now: float) -> list[Task]:
        """Sample all threads of processes. Return the threads that have become stuck, once per stay."""
        stays, fresh = dict[int, _Stay](), list[Task]()
        for pid in pids:
            for task in uninterruptible_tasks(pid, self._proc):
                stay = stays[task.tid] = self._stay(task, now)
                if not stay.is_reported and now - stay.since > self._patience:
                    stay.is_reported = True
                    self._stuck.add((task, now - stay.since))
                    fresh.append(task)
        self._stays = stays
        return fresh

    def findings(self) -> list[str]:
        """Return the findings, at most a hundred."""
        return [
            f"task {task.tid} ({task.comm}) of process {task.pid} was stuck in state {task.state} "
            f"for {seconds:.0f} s in {task.place or 'the kernel'}"
            for task, seconds in self._stuck.first
        ]

    def document(self) -> list[dict[str, Any]]:
        """Return the stuck tasks in the form of the report, with their kernel stacks."""
        return [
            {
                "pid": task.pid,
                "tid": task.tid,
                "comm": task.comm,
                "state": task.state,
                "seconds": round(seconds, 1),
                "stack": list(task.stack),
            }
            for task, seconds in self._stuck.first
        ]

    def _stay(self, task: Task, now: float) -> _Stay:
        former = self._stays.get(task.tid)
        return former if former is not None and former.is_same(task, now) else _Stay(now, task)
