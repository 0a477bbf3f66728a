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
from vfiotool.stress.monitors.resources import CycleLeakCheck, read_process_resources
from vfiotool.stress.operations.registry import GroupOperations
from vfiotool.stress.record import NOTHING, Call, Expectation, Record
from vfiotool.stress.workloads import REPLAY, WORKLOADS, Workload, repetition
from vfiotool.util.child import fork_child
from vfiotool.util.signals import TERMINAL_SIGNALS
from vfiotool.util.tasks import children

BATCH = 64
"""The most records in one message."""
_BATCH_SECONDS = 0.05
"""The longest delay of a record: the run knows all earlier records even if the kernel kills the worker."""
_STATUS_BYTES = 256


@dataclass(frozen=True, slots=True)
class Assignment:
    """The work of a worker on one group. ``unit`` is the number of the group in the run."""

    unit: int
    operations: GroupOperations
    workloads: tuple[Workload, ...]


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """A message of a worker: records, the number of cycles that ended, and leaks.

    ``at`` is the time of sending, CLOCK_MONOTONIC in seconds. ``watch`` are groups with their devices, which
    the monitors must watch before the next call involves them.
    """

    at: float
    records: tuple[Record, ...] = ()
    cycles: int = 0
    leaked: tuple[str, ...] = ()
    watch: tuple[tuple[int, frozenset[str]], ...] = ()


class StatusLine:
    """A text in shared memory: the present call of a worker, readable even if the worker is stuck or gone."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _STATUS_BYTES)

    def show(self, text: str) -> None:
        """Set the text. The text is cut to the size of the memory."""
        content = text.encode("utf-8", "replace")[:_STATUS_BYTES]
        self._memory[:] = content.ljust(_STATUS_BYTES, b"\0")

    def read(self) -> str:
        """Return the text."""
        return self._memory[:].rstrip(b"\0").decode("utf-8", "replace")


class Worker:
    """Executes cycles on its groups in turn. A handle of one thread; each worker is a process.

    The seed determines the calls of each cycle, whichever worker executes the cycle, and at any time.
    """

    def __init__(
        self,
        assignments: Sequence[Assignment],
        line: Connection,
        status_line: StatusLine,
        *,
        seed: int,
        cycles: int | None,
        until: float | None,
        allow_crash: bool = False,
    ) -> None:
        """``cycles`` limits the cycles per workload and group; ``until`` is CLOCK_MONOTONIC in seconds."""
        self._assignments = assignments
        self._line = line
        self._stop = select.poll()  # created once: Connection.poll creates a poll object per call
        self._stop.register(line, select.POLLIN)
        self._status_line = status_line
        self._seed, self._cycles, self._until = seed, cycles, until
        self._allow_crash = allow_crash
        self._batch: list[Record] = []
        self._ended = 0
        self._sent = now()
        self._announced = set[tuple[int, frozenset[str]]]()
        self._leaks = CycleLeakCheck()

    def run(self) -> None:
        """Execute cycles until the number or the time is reached, or the run asks this worker to stop."""
        self._run_cycles()
        self._send()

    def _run_cycles(self) -> None:
        rounds = itertools.count() if self._cycles is None else range(self._cycles)
        for cycle in rounds:
            for assignment in self._assignments:
                for workload in assignment.workloads:
                    if self._is_over():
                        return
                    self._run_cycle(assignment, workload, cycle)

    def _run_cycle(self, assignment: Assignment, workload: Workload, cycle: int) -> None:
        """Execute one cycle, and return the group to rest after any outcome."""
        operations, harness = assignment.operations, assignment.operations.harness
        template = NOTHING._replace(unit=assignment.unit, workload=workload.name, cycle=cycle)
        rng = random.Random(f"{self._seed}/{assignment.unit}/{workload.name}/{cycle}")  # noqa: S311 - repeatable
        chosen = itertools.takewhile(lambda _: not self._is_stop_requested(), workload.cycle(operations, rng))
        if not all(self._execute(harness, calls, template) for calls in (chosen, harness.wind_down())):
            harness.abandon()
            self._execute(harness, harness.wind_down(), template)
        harness.clients.close()  # closes what the kernel returned against the model
        self._ended += 1
        if leaked := self._leaked(assignment, workload):
            self._send(leaked=leaked)
        self._send_if_due()

    def _execute(self, harness: GroupHarness, calls: Iterator[Call], template: Record) -> bool:
        """Execute calls as they are chosen, up to the first unexpected outcome. Return True if none came."""
        for call in calls:
            expected = harness.expect(call)
            if expected is None or (expected.crash and not self._allow_crash):
                continue
            self._status_line.show(f"{template.workload} {template.cycle}: {call}")
            self._announce(harness, expected)
            if expected.crash:
                self._send()  # the call may end the machine
            for record in harness.perform(call, template, expected):
                self._batch.append(record)
                if record.is_unexpected:
                    return False
            self._send_if_due()
        return True

    def _announce(self, harness: GroupHarness, expected: Expectation) -> None:
        """Make the monitors watch every group and device that a call involves for the first time."""
        about = harness.about(expected)
        if not about <= self._announced:
            self._announced |= about
            self._send(watch=tuple(about))

    def _leaked(self, assignment: Assignment, workload: Workload) -> tuple[str, ...]:
        """Return what this worker holds at rest and did not hold after earlier cycles of the workload."""
        harness = assignment.operations.harness
        if not harness.is_at_rest:
            return ()
        held = read_process_resources((os.getpid(),), harness.tree)
        found = self._leaks.grown((assignment.unit, workload.name), held)
        return tuple(f"{finding} more after a cycle of {workload.name}" for finding in found)

    def _is_stop_requested(self) -> bool:
        """Return True if the run asked this worker to stop, or has exited."""
        return bool(self._stop.poll(0))

    def _is_over(self) -> bool:
        return self._is_stop_requested() or (self._until is not None and now() >= self._until)

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
    """Run a worker in a child process; return its pid and its status line.

    The worker ignores Ctrl-C: the run asks the worker to stop.
    """
    status_line = StatusLine()

    def run() -> None:
        try:
            make(line, status_line).run()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the run has exited
        except Exception:
            traceback.print_exc()
            raise

    return fork_child(run, new_session=True, ignored_signals=TERMINAL_SIGNALS), status_line


_MOST_AT_ONCE = 32


class WorkerHandle:
    """The run's handle of one worker. ``line`` is None after the worker has exited.

    All messages up to ``heard`` have been received; ``spoke`` is the time of the last message. Both are
    CLOCK_MONOTONIC in seconds.
    """

    def __init__(self, pid: int, line: Connection, status_line: StatusLine) -> None:
        self.pid = pid
        self.status_line = status_line
        self.line: Connection | None = line
        self.heard = 0.0
        self.spoke = now()
        self.status: int | None = None
        self._sent = select.poll()  # created once, as in Worker
        self._sent.register(line, select.POLLIN)

    @property
    def has_sent(self) -> bool:
        """Return True if a message can be received, or the worker has exited."""
        return bool(self._sent.poll(0))

    def end(self) -> None:
        """Close the connection of a worker that has exited, and keep its exit status."""
        if self.line is not None:
            self.line.close()
            self.line = None
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)


class WorkerPool:
    """All workers of a run. Only one thread may use a pool."""

    def __init__(
        self, config: RunConfig, model: Model, until: float | None, leave: Callable[[], None]
    ) -> None:
        """Start the workers. Each group belongs to one worker.

        Each worker calls ``leave`` first, to close what only the run may hold open.
        """
        self.all: list[WorkerHandle] = []
        self._leave = leave
        count = max(1, min(config.jobs, len(config.groups)))
        for number in range(count):
            groups = list(enumerate(config.groups))[number::count]
            self.all.append(self._start(config, model, groups, until))

    @property
    def running(self) -> list[WorkerHandle]:
        """The workers that have not exited."""
        return [worker for worker in self.all if worker.line is not None]

    def receive(self, timeout: float) -> Iterator[WorkerMessage]:
        """Yield received messages; wait at most ``timeout`` seconds. Mark each worker that has exited."""
        wait([worker.line for worker in self.running if worker.line is not None], timeout)
        for worker in self.running:
            yield from _received(worker)

    @property
    def heard(self) -> float:
        """The time up to which all messages have been received, CLOCK_MONOTONIC in seconds."""
        return min((worker.heard for worker in self.running), default=math.inf)

    def request_stop(self) -> None:
        """Ask each worker to return its groups to rest, and to exit."""
        for worker in self.running:
            with contextlib.suppress(BrokenPipeError):
                if worker.line is not None:
                    worker.line.send("end")

    def processes(self) -> list[int]:
        """Return the pids of the workers and of their children."""
        workers = [worker.pid for worker in self.running]
        return [*workers, *children(workers)]

    def abandon(self) -> None:
        """Kill the workers that do not exit, and their clients, and wait for none of them.

        A worker and its client are one process group. A process that writes to sysfs has a session of its
        own, and gets no signal: while an unbind waits for a user of the device, its write sleeps
        interruptibly. A signal would move it to state D, and even SIGKILL would not end it before the device
        is released. The write returns by itself once the worker is dead and its devices are closed.
        """
        for worker in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)

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
            assignments = [_assignment(number, group, model, config) for number, group in groups]
            return Worker(
                assignments,
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
    """Return the workloads that a group supports."""
    return tuple(WORKLOADS[name] for name in names if not WORKLOADS[name].lacks(operations))


def _received(worker: WorkerHandle) -> Iterator[WorkerMessage]:
    """Yield received messages of one worker, at most so many that the other workers get their turn."""
    for _ in range(_MOST_AT_ONCE):
        asked = now()
        try:
            if worker.line is None:
                return
            if not worker.has_sent:
                worker.heard = asked
                return
            message: WorkerMessage = worker.line.recv()
        except (EOFError, ConnectionResetError):
            worker.end()
            return
        worker.heard = worker.spoke = message.at
        yield message


def _assignment(number: int, group: GroupSpec, model: Model, config: RunConfig) -> Assignment:
    operations = GroupOperations(model, group)
    if config.repeated:
        replayed = Workload(REPLAY, repetition(config.repeated.get(number, ())))
        return Assignment(number, operations, (replayed,))
    return Assignment(number, operations, possible(operations, config.workloads))
