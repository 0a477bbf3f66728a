"""The worker processes of a run: each executes cycles on its groups and reports every operation."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import random
import select
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from vfiotool.events.entry import now
from vfiotool.stress.config import RunConfig
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.groups import GroupSpec
from vfiotool.stress.model.lifecycle import Model
from vfiotool.stress.monitors.resources import Holdings, read_holdings
from vfiotool.stress.operations.registry import GroupOperations
from vfiotool.stress.record import NOTHING, Call, Expectation, Record
from vfiotool.stress.workloads import REPLAY, WORKLOADS, Workload, repetition


def ignore_terminal_signals() -> None:
    """Have a session of one's own, and take no notice of being told to end."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


BATCH = 64
"""How many operations are sent at once, at most."""
_BATCH_SECONDS = 0.05
"""What was done for so long before is known, even if the kernel then ends the process."""
_STATUS_BYTES = 256


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is to do with one group; ``unit`` is its number in the run."""

    unit: int
    operations: GroupOperations
    workloads: tuple[Workload, ...]


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """What a worker sends: operations that it did, cycles that it has ended, and what it found leaking.

    ``at`` is CLOCK_MONOTONIC in seconds, when it is sent. ``watch`` are groups, and devices of theirs, that
    are to be watched before an operation makes them known.
    """

    at: float
    records: tuple[Record, ...] = ()
    cycles: int = 0
    leaked: tuple[str, ...] = ()
    watch: tuple[tuple[int, frozenset[str]], ...] = ()


class StatusLine:
    """What a process does just now, for others to read even if it is stuck or gone. Shared by a fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _STATUS_BYTES)

    def show(self, text: str) -> None:
        """Show a text, cut to what fits."""
        content = text.encode("utf-8", "replace")[:_STATUS_BYTES]
        self._memory[:] = content.ljust(_STATUS_BYTES, b"\0")

    def read(self) -> str:
        """Return what is shown."""
        return self._memory[:].rstrip(b"\0").decode("utf-8", "replace")


class Worker:
    """Does the parts of one job in turns. A handle of one thread, in a process of its own.

    The seed decides what each cycle does, whoever does it and whenever.
    """

    def __init__(
        self,
        parts: Sequence[Assignment],
        line: Connection,
        status_line: StatusLine,
        *,
        seed: int,
        cycles: int | None,
        until: float | None,
        allow_crash: bool = False,
    ) -> None:
        """``cycles`` bounds how often each workload is done on each group, ``until`` is CLOCK_MONOTONIC."""
        self._parts = parts
        self._line = line
        self._stop = select.poll()  # made once: Connection.poll makes one each time
        self._stop.register(line, select.POLLIN)
        self._status_line = status_line
        self._seed, self._cycles, self._until = seed, cycles, until
        self._allow_crash = allow_crash
        self._batch: list[Record] = []
        self._ended = 0
        self._sent = now()
        self._announced = set[tuple[int, frozenset[str]]]()
        self._held: dict[tuple[int, str], Holdings] = {}

    def run(self) -> None:
        """Do cycles until there have been enough, time is up, or the run says so."""
        self._do_cycles()
        self._send()

    def _do_cycles(self) -> None:
        rounds = itertools.count() if self._cycles is None else range(self._cycles)
        for cycle in rounds:
            for part in self._parts:
                for workload in part.workloads:
                    if self._is_over():
                        return
                    self._do_cycle(part, workload, cycle)

    def _do_cycle(self, part: Assignment, workload: Workload, cycle: int) -> None:
        """Do one, and go back to rest, whatever comes of it."""
        operations, harness = part.operations, part.operations.harness
        template = NOTHING._replace(unit=part.unit, workload=workload.name, cycle=cycle)
        rng = random.Random(f"{self._seed}/{part.unit}/{workload.name}/{cycle}")  # noqa: S311 - repeatable
        chosen = itertools.takewhile(lambda _: not self._is_told(), workload.cycle(operations, rng))
        if not (
            self._perform(operations, chosen, template)
            and self._perform(operations, harness.wind_down(), template)
        ):
            harness.abandon()
            self._perform(operations, harness.wind_down(), template)
        harness.clients.close()  # all is closed that the model has; this is what it has not
        self._ended += 1
        if leaked := self._leaked(part, workload):
            self._send(leaked=leaked)
        self._send_if_due()

    def _perform(self, operations: GroupOperations, calls: Iterator[Call], template: Record) -> bool:
        """Do actions as they are chosen, up to one that does not come out as expected; say if none did."""
        for call in calls:
            expected = operations.harness.expect(call)
            if expected is None or (expected.crash and not self._allow_crash):
                continue
            self._status_line.show(f"{template.workload} {template.cycle}: {call}")
            self._announce(operations.harness, expected)
            if expected.crash:
                self._send()  # nothing may be heard after it
            for record in operations.harness.perform(call, template, expected):
                self._batch.append(record)
                if record.is_unexpected:
                    return False
            self._send_if_due()
        return True

    def _announce(self, harness: GroupHarness, expected: Expectation) -> None:
        """Have what an operation names for the first time be watched before it does."""
        about = harness.about(expected)
        if not about <= self._announced:
            self._announced |= about
            self._send(watch=tuple(about))

    def _leaked(self, part: Assignment, workload: Workload) -> tuple[str, ...]:
        """Compare what is held at rest with what was after the first cycle of the kind."""
        harness = part.operations.harness
        if not harness.is_at_rest:
            return ()
        held = read_holdings((os.getpid(),), harness.tree)
        known = self._held.setdefault((part.unit, workload.name), held)
        self._held[part.unit, workload.name] = held
        return tuple(f"{one} after a cycle of {workload.name}" for one in held.more_than(known))

    def _is_told(self) -> bool:
        """Say whether the run has said to end, or is gone."""
        return bool(self._stop.poll(0))

    def _is_over(self) -> bool:
        return self._is_told() or (self._until is not None and now() >= self._until)

    def _send_if_due(self) -> None:
        if len(self._batch) >= BATCH or now() - self._sent > _BATCH_SECONDS:
            self._send()

    def _send(self, leaked: tuple[str, ...] = (), watch: tuple[tuple[int, frozenset[str]], ...] = ()) -> None:
        self._line.send(WorkerMessage(now(), tuple(self._batch), self._ended, leaked, watch))
        self._batch.clear()
        self._ended, self._sent = 0, now()


def start_worker(
    make: Callable[[Connection, StatusLine], Worker], line: Connection
) -> tuple[int, StatusLine]:
    """Run a worker in a process of its own; return its pid, and what it shows.

    Ctrl-C is not for it: the run tells it when to end.
    """
    status_line = StatusLine()
    pid = os.fork()
    if pid:
        return pid, status_line
    status = 1
    try:
        ignore_terminal_signals()
        make(line, status_line).run()
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the run is gone
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


_MOST_AT_ONCE = 32


class WorkerHandle:
    """One worker. ``line`` is None once it has ended; what it sent up to ``heard`` is known.

    ``spoke`` is when it last sent anything. Both are CLOCK_MONOTONIC in seconds.
    """

    def __init__(self, pid: int, line: Connection, status_line: StatusLine) -> None:
        self.pid = pid
        self.status_line = status_line
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


class WorkerPool:
    """All workers of a run. A handle of one thread."""

    def __init__(
        self, config: RunConfig, model: Model, until: float | None, leave: Callable[[], None]
    ) -> None:
        """Start them: groups are dealt to them in turns, so that no group is two workers'.

        ``leave`` closes, in each of them, what is only for who starts them.
        """
        self.all: list[WorkerHandle] = []
        self._leave = leave
        count = max(1, min(config.jobs, len(config.groups)))
        for number in range(count):
            parts = list(enumerate(config.groups))[number::count]
            self.all.append(self._start(config, model, parts, until))

    @property
    def running(self) -> list[WorkerHandle]:
        """Those that have not ended."""
        return [worker for worker in self.all if worker.line is not None]

    def receive(self, timeout: float) -> Iterator[WorkerMessage]:
        """Yield what has come, waiting at most so many seconds for it; who has ended is marked so."""
        wait([worker.line for worker in self.running if worker.line is not None], timeout)
        for worker in self.running:
            yield from _received(worker)

    @property
    def heard(self) -> float:
        """Until when all that workers have sent is known, in seconds of CLOCK_MONOTONIC."""
        return min((worker.heard for worker in self.running), default=math.inf)

    def tell_to_end(self) -> None:
        """Have each go back to rest, and end."""
        for worker in self.running:
            with contextlib.suppress(BrokenPipeError):
                if worker.line is not None:
                    worker.line.send("end")

    def processes(self) -> list[int]:
        """Return the workers and what they have started."""
        return [pid for worker in self.running for pid in (worker.pid, *_children(worker.pid))]

    def abandon(self) -> None:
        """Kill those that do not end. One that is stuck in the kernel stays so, and is not waited for."""
        for worker in self.running:
            for pid in (worker.pid, *_children(worker.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _start(
        self, config: RunConfig, model: Model, groups: Sequence[tuple[int, GroupSpec]], until: float | None
    ) -> WorkerHandle:
        ours, theirs = Pipe()

        def make(line: Connection, status_line: StatusLine) -> Worker:
            ours.close()
            self._leave()
            for worker in self.all:
                if worker.line is not None:
                    worker.line.close()
            parts = [_part(number, unit, model, config) for number, unit in groups]
            return Worker(
                parts,
                line,
                status_line,
                seed=config.seed,
                cycles=config.cycles,
                until=until,
                allow_crash=config.allow_crash,
            )

        pid, status_line = start_worker(make, theirs)
        theirs.close()
        return WorkerHandle(pid, ours, status_line)


def possible(operations: GroupOperations, names: Sequence[str]) -> tuple[Workload, ...]:
    """Return the workloads that a group has what it takes for."""
    return tuple(WORKLOADS[name] for name in names if not WORKLOADS[name].lacks(operations))


def _received(worker: WorkerHandle) -> Iterator[WorkerMessage]:
    """Yield what one has sent, up to what leaves others their turn."""
    for _ in range(_MOST_AT_ONCE):
        asked = now()
        try:
            if worker.line is None:
                return
            if not worker.has_sent:
                worker.heard = asked
                return
            sent: WorkerMessage = worker.line.recv()
        except (EOFError, ConnectionResetError):
            worker.end()
            return
        worker.heard = worker.spoke = sent.at
        yield sent


def _part(number: int, unit: GroupSpec, model: Model, config: RunConfig) -> Assignment:
    operations = GroupOperations(model, unit)
    if config.repeated:
        return Assignment(
            number, operations, (Workload(REPLAY, repetition(config.repeated.get(number, ()))),)
        )
    return Assignment(number, operations, possible(operations, config.workloads))


def _children(pid: int) -> list[int]:
    """Return the processes that one has started; none where CONFIG_PROC_CHILDREN is not set."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []
