"""The performers of a run, each in a process of its own."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from vfiotool.events.entry import now
from vfiotool.stress.cast import Cast
from vfiotool.stress.model import Model
from vfiotool.stress.order import Order
from vfiotool.stress.performer import Part, Performer, Placard, Sent, start_performer
from vfiotool.stress.stage import Unit
from vfiotool.stress.workloads import REPLAY, WORKLOADS, Workload, repetition

_MOST_AT_ONCE = 32


class Job:
    """One performer. ``line`` is None once it has ended; what it sent up to ``heard`` is known.

    ``spoke`` is when it last sent anything. Both are CLOCK_MONOTONIC in seconds.
    """

    def __init__(self, pid: int, line: Connection, placard: Placard) -> None:
        self.pid = pid
        self.placard = placard
        self.line: Connection | None = line
        self.heard = 0.0
        self.spoke = now()
        self.status: int | None = None
        self._sent = select.poll()  # made once: Connection.poll makes one each time
        self._sent.register(line, select.POLLIN)

    @property
    def has_sent(self) -> bool:
        """Say whether something waits that it has sent, be it that it has ended."""
        return bool(self._sent.poll(0))

    def end(self) -> None:
        """Take it that it has ended, and see how."""
        if self.line is not None:
            self.line.close()
            self.line = None
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)


class Jobs:
    """All performers of a run. A handle of one thread."""

    def __init__(self, order: Order, model: Model, until: float | None, leave: Callable[[], None]) -> None:
        """Start them: groups are dealt to them in turns, so that no group is two performers'.

        ``leave`` closes, in each of them, what is only for who starts them.
        """
        self.all: list[Job] = []
        self._leave = leave
        count = max(1, min(order.jobs, len(order.units)))
        for number in range(count):
            parts = list(enumerate(order.units))[number::count]
            self.all.append(self._start(order, model, parts, until))

    @property
    def running(self) -> list[Job]:
        """Those that have not ended."""
        return [job for job in self.all if job.line is not None]

    def receive(self, timeout: float) -> Iterator[Sent]:
        """Yield what has come, waiting at most so many seconds for it; who has ended is marked so."""
        wait([job.line for job in self.running if job.line is not None], timeout)
        for job in self.running:
            yield from _received(job)

    @property
    def heard(self) -> float:
        """Until when all that performers have sent is known, in seconds of CLOCK_MONOTONIC."""
        return min((job.heard for job in self.running), default=math.inf)

    def tell_to_end(self) -> None:
        """Have each go back to rest, and end."""
        for job in self.running:
            with contextlib.suppress(BrokenPipeError):
                if job.line is not None:
                    job.line.send("end")

    def processes(self) -> list[int]:
        """Return the performers and what they have started."""
        return [pid for job in self.running for pid in (job.pid, *_children(job.pid))]

    def abandon(self) -> None:
        """Kill those that do not end. One that is stuck in the kernel stays so, and is not waited for."""
        for job in self.running:
            for pid in (job.pid, *_children(job.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _start(
        self, order: Order, model: Model, units: Sequence[tuple[int, Unit]], until: float | None
    ) -> Job:
        ours, theirs = Pipe()

        def make(line: Connection, placard: Placard) -> Performer:
            ours.close()
            self._leave()
            for job in self.all:
                if job.line is not None:
                    job.line.close()
            parts = [_part(number, unit, model, order) for number, unit in units]
            return Performer(
                parts,
                line,
                placard,
                seed=order.seed,
                cycles=order.cycles,
                until=until,
                allow_crash=order.allow_crash,
            )

        pid, placard = start_performer(make, theirs)
        theirs.close()
        return Job(pid, ours, placard)


def possible(cast: Cast, names: Sequence[str]) -> tuple[Workload, ...]:
    """Return the workloads that a group has what it takes for."""
    return tuple(WORKLOADS[name] for name in names if not WORKLOADS[name].lacks(cast))


def _received(job: Job) -> Iterator[Sent]:
    """Yield what one has sent, up to what leaves others their turn."""
    for _ in range(_MOST_AT_ONCE):
        asked = now()
        try:
            if job.line is None:
                return
            if not job.has_sent:
                job.heard = asked
                return
            sent: Sent = job.line.recv()
        except (EOFError, ConnectionResetError):
            job.end()
            return
        job.heard = job.spoke = sent.at
        yield sent


def _part(number: int, unit: Unit, model: Model, order: Order) -> Part:
    cast = Cast(model, unit)
    if order.repeated:
        return Part(number, cast, (Workload(REPLAY, repetition(order.repeated.get(number, ()))),))
    return Part(number, cast, possible(cast, order.workloads))


def _children(pid: int) -> list[int]:
    """Return the processes that one has started; none where CONFIG_PROC_CHILDREN is not set."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []
