"""Tasks that are stuck in the kernel: in state D, at one place, for too long. Nobody waits for them."""

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
    """A thread in state D. ``stack`` has the kernel's frames, the innermost first; none without root.

    ``wchan`` names the function in which it sleeps, and ``switches`` how often it went to sleep so far.
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
        """Where in the kernel it is, if that can be told."""
        return self.stack[0] if self.stack else self.wchan


@dataclass(slots=True)
class _Stay:
    """How long a task has been at a place, in seconds of the caller's clock."""

    since: float
    task: StuckTask
    is_reported: bool = False

    def is_same(self, task: StuckTask, now: float) -> bool:
        """Say whether a task is there still, and not again.

        One that gets on sleeps many times a second; one that waits with a timeout wakes for a moment now and
        then, as an unbind does every 10 seconds.
        """
        return task.place == self.task.place and task.switches - self.task.switches <= now - self.since


class StuckTaskMonitor:
    """Looks at tasks again and again. ``patience`` is in seconds. One thread uses it."""

    def __init__(self, patience: float, proc: str = "/proc") -> None:
        self._patience = patience
        self._proc = proc
        self._stays: dict[int, _Stay] = {}
        self._stuck = Samples[tuple[StuckTask, float]]()

    def look(self, pids: Iterable[int], now: float) -> list[StuckTask]:
        """Look at all threads of processes; return those that have become stuck, each stay once."""
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
        """Return what was stuck, the first hundred."""
        return [
            f"task {task.tid} ({task.comm}) of process {task.pid} was stuck in state {task.state} "
            f"for {seconds:.0f} s in {task.place or 'the kernel'}"
            for task, seconds in self._stuck.first
        ]

    def document(self) -> list[dict[str, Any]]:
        """Return each with its kernel stack."""
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
    """Return the first thread of a process that is in state D now, if there is one."""
    return next(_waiting(pid, proc), None)


def _waiting(pid: int, proc: str) -> Iterator[StuckTask]:
    try:
        tids = sorted(int(name) for name in os.listdir(f"{proc}/{pid}/task"))
    except OSError:  # it has ended
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
    """Return a file's text, none where the task has ended or root alone may read it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
