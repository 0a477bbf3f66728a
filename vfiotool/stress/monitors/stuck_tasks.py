"""Finds tasks that are stuck in the kernel: in state D, in one function, for too long."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vfiotool.stress.monitors.samples import Samples

_FRAMES = 20
_FRAME = re.compile(r"\[<\w+>\] (.+)")
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
_STAT = re.compile(r"\d+ \((.*)\) (\S)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class StuckTask:
    """A thread in state D. ``stack`` holds the kernel's frames, the innermost first; empty without root.

    ``wchan`` is the function in which the thread sleeps. ``switches`` is the number of sleeps so far.
    """

    pid: int
    tid: int
    comm: str
    state: str
    wchan: str
    switches: int
    stack: tuple[str, ...]

    @property
    def place(self) -> str:
        """The function in which the thread sleeps, or an empty text."""
        return self.stack[0] if self.stack else self.wchan


@dataclass(slots=True)
class _Stay:
    """The stay of a task in one function. ``since`` is in seconds of the caller's clock."""

    since: float
    task: StuckTask
    is_reported: bool = False

    def is_same(self, task: StuckTask, now: float) -> bool:
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
        self._stuck = Samples[tuple[StuckTask, float]]()

    def look(self, pids: Iterable[int], now: float) -> list[StuckTask]:
        """Sample all threads of processes. Return the threads that have become stuck, once per stay."""
        stays, fresh = dict[int, _Stay](), list[StuckTask]()
        for pid in pids:
            for task in _waiting(pid, self._proc):
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

    def _stay(self, task: StuckTask, now: float) -> _Stay:
        former = self._stays.get(task.tid)
        return former if former is not None and former.is_same(task, now) else _Stay(now, task)


def stuck(pid: int, proc: str = "/proc") -> StuckTask | None:
    """Return the first thread of a process that is in state D now, or None."""
    return next(_waiting(pid, proc), None)


def _waiting(pid: int, proc: str) -> Iterator[StuckTask]:
    try:
        tids = sorted(int(name) for name in os.listdir(f"{proc}/{pid}/task"))
    except OSError:  # the process has exited
        return
    for tid in tids:
        path = f"{proc}/{pid}/task/{tid}"
        found, wchan = _STAT.match(_read(f"{path}/stat")), _read(f"{path}/wchan").strip()
        if found and found[2] == "D":
            switches = _SWITCHES.search(_read(f"{path}/status"))
            yield StuckTask(
                pid=pid,
                tid=tid,
                comm=found[1],
                state=found[2],
                wchan="" if wchan == "0" else wchan,
                switches=int(switches[1]) if switches else 0,
                stack=tuple(_FRAME.findall(_read(f"{path}/stack"))[:_FRAMES]),
            )


def _read(path: str) -> str:
    """Return the text of a file; empty if the task has exited or only root may read the file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
