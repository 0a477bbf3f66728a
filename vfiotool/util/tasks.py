"""The tasks of the kernel as ``/proc`` shows them: whether they sleep, in which function, and their children.

No event announces that a task sleeps in the kernel: it has to be sampled. Source: proc(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_MOST_FRAMES = 20
_STAT = re.compile(r"\d+ \((.*)\) (\S) (\d+)", re.DOTALL)  # a name can contain parentheses and newlines
_STATE = re.compile(r"^State:\t(\S)", re.MULTILINE)
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
_FRAME = re.compile(r"\[<\w+>\] (.+)")


@dataclass(frozen=True, slots=True)
class Task:
    """A thread at one moment. ``stack`` holds the kernel's frames, the innermost first; empty without root.

    ``state`` is the letter of proc(5): R runs or waits for a processor, S sleeps, D sleeps uninterruptibly.
    ``wchan`` is the function in which the thread sleeps. ``switches`` is the number of sleeps so far.
    ``is_steady`` is true if the thread did not run while it was read, so that all fields belong together.
    """

    pid: int
    tid: int
    comm: str
    state: str
    wchan: str
    switches: int
    stack: tuple[str, ...]
    is_steady: bool

    @property
    def place(self) -> str:
        """The function in which the thread sleeps, or an empty text."""
        return self.stack[0] if self.stack else self.wchan


def read_task(pid: int, tid: int | None = None, proc: str = "/proc") -> Task | None:
    """Return a thread of a process, by default the main thread, or None if it has exited."""
    tid = pid if tid is None else tid
    folder = f"{proc}/{pid}/task/{tid}"
    stat = _STAT.match(_read(f"{folder}/stat"))
    before = _read(f"{folder}/status")
    wchan, stack = _read(f"{folder}/wchan").strip(), _read(f"{folder}/stack")
    after = _read(f"{folder}/status")
    state, switches = _STATE.search(after), _SWITCHES.search(after)
    if stat is None or state is None:
        return None
    return Task(
        pid=pid,
        tid=tid,
        comm=stat[1],
        state=state[1],
        wchan="" if wchan == "0" else wchan,
        switches=int(switches[1]) if switches else 0,
        stack=tuple(_FRAME.findall(stack)[:_MOST_FRAMES]),
        is_steady=before == after,
    )


def task_state(pid: int, proc: str = "/proc") -> str | None:
    """Return the letter of the state of a process's main thread, or None if it has exited."""
    found = _STAT.match(_read(f"{proc}/{pid}/stat"))
    return found[2] if found else None


def sleeps_in(pid: int, functions: Collection[str], proc: str = "/proc") -> bool:
    """Return True if the main thread of a process sleeps in one of these functions of the kernel.

    A thread that only gave way to another task has the same stack, but its state is R. Takes root.
    """
    task = read_task(pid, proc=proc)
    if task is None or not task.is_steady or task.state not in ("S", "D") or not task.stack:
        return False
    return task.stack[0].partition("+")[0] in functions


def uninterruptible_tasks(pid: int, proc: str = "/proc") -> Iterator[Task]:
    """Yield the threads of a process that are in state D: no signal wakes them."""
    try:
        tids = sorted(int(name) for name in os.listdir(f"{proc}/{pid}/task"))
    except OSError:  # the process has exited
        return
    for tid in tids:
        stat = _STAT.match(_read(f"{proc}/{pid}/task/{tid}/stat"))
        if stat is not None and stat[2] == "D":
            task = read_task(pid, tid, proc)
            if task is not None and task.state == "D":
                yield task


def children(parents: Collection[int], proc: str = "/proc") -> list[int]:
    """Return the child processes of these processes, zombies included, in the order of their pids.

    The source is the parent in ``/proc/*/stat``: ``/proc/PID/task/TID/children`` needs CONFIG_PROC_CHILDREN,
    and only lists the children of one thread.
    """
    found = []
    for name in os.listdir(proc):
        stat = _STAT.match(_read(f"{proc}/{name}/stat")) if name.isdecimal() else None
        if stat is not None and int(stat[3]) in parents:
            found.append(int(name))
    return sorted(found)


def _read(path: str) -> str:
    """Return the text of a file; empty if the task has exited, or only root may read the file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
