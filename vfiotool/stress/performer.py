"""The process of one job: it does cycle after cycle, and reports each operation to the engine."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import select
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from vfiotool.events.entry import now
from vfiotool.stress.action import NOTHING, Action, Expectation, Record
from vfiotool.stress.apart import stand_apart
from vfiotool.stress.cast import Cast
from vfiotool.stress.holdings import Holdings, read_holdings
from vfiotool.stress.stage import Stage
from vfiotool.stress.workloads import Workload

BATCH = 64
"""How many operations are sent at once, at most."""
_BATCH_SECONDS = 0.05
"""What was done for so long before is known, even if the kernel then ends the process."""
_PLACARD_BYTES = 256


@dataclass(frozen=True, slots=True)
class Part:
    """What a performer is to do with one group; ``unit`` is its number in the run."""

    unit: int
    cast: Cast
    workloads: tuple[Workload, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a performer sends: operations that it did, cycles that it has ended, and what it found leaking.

    ``at`` is CLOCK_MONOTONIC in seconds, when it is sent. ``watch`` are groups, and devices of theirs, that
    are to be watched before an operation makes them known.
    """

    at: float
    records: tuple[Record, ...] = ()
    cycles: int = 0
    leaked: tuple[str, ...] = ()
    watch: tuple[tuple[int, frozenset[str]], ...] = ()


class Placard:
    """What a process does just now, for others to read even if it is stuck or gone. Shared by a fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PLACARD_BYTES)

    def show(self, text: str) -> None:
        """Show a text, cut to what fits."""
        content = text.encode("utf-8", "replace")[:_PLACARD_BYTES]
        self._memory[:] = content.ljust(_PLACARD_BYTES, b"\0")

    def read(self) -> str:
        """Return what is shown."""
        return self._memory[:].rstrip(b"\0").decode("utf-8", "replace")


class Performer:
    """Does the parts of one job in turns. A handle of one thread, in a process of its own.

    The seed decides what each cycle does, whoever does it and whenever.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        line: Connection,
        placard: Placard,
        *,
        seed: int,
        cycles: int | None,
        until: float | None,
        allow_crash: bool = False,
    ) -> None:
        """``cycles`` bounds how often each workload is done on each group, ``until`` is CLOCK_MONOTONIC."""
        self._parts = parts
        self._line = line
        self._told = select.poll()  # made once: Connection.poll makes one each time
        self._told.register(line, select.POLLIN)
        self._placard = placard
        self._seed, self._cycles, self._until = seed, cycles, until
        self._allow_crash = allow_crash
        self._batch: list[Record] = []
        self._ended = 0
        self._sent = now()
        self._announced = set[tuple[int, frozenset[str]]]()
        self._held: dict[tuple[int, str], Holdings] = {}

    def run(self) -> None:
        """Do cycles until there have been enough, time is up, or the engine says so."""
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

    def _do_cycle(self, part: Part, workload: Workload, cycle: int) -> None:
        """Do one, and go back to rest, whatever comes of it."""
        cast, stage = part.cast, part.cast.stage
        template = NOTHING._replace(unit=part.unit, workload=workload.name, cycle=cycle)
        rng = random.Random(f"{self._seed}/{part.unit}/{workload.name}/{cycle}")  # noqa: S311 - repeatable
        chosen = itertools.takewhile(lambda _: not self._is_told(), workload.cycle(cast, rng))
        if not (self._perform(cast, chosen, template) and self._perform(cast, stage.wind_down(), template)):
            stage.abandon()
            self._perform(cast, stage.wind_down(), template)
        stage.troupe.close()  # all is closed that the model has; this is what it has not
        self._ended += 1
        if leaked := self._leaked(part, workload):
            self._send(leaked=leaked)
        self._send_if_due()

    def _perform(self, cast: Cast, actions: Iterator[Action], template: Record) -> bool:
        """Do actions as they are chosen, up to one that does not come out as expected; say if none did."""
        for action in actions:
            expected = cast.stage.expect(action)
            if expected is None or (expected.crash and not self._allow_crash):
                continue
            self._placard.show(f"{template.workload} {template.cycle}: {action}")
            self._announce(cast.stage, expected)
            if expected.crash:
                self._send()  # nothing may be heard after it
            for record in cast.stage.perform(action, template, expected):
                self._batch.append(record)
                if record.is_unexpected:
                    return False
            self._send_if_due()
        return True

    def _announce(self, stage: Stage, expected: Expectation) -> None:
        """Have what an operation names for the first time be watched before it does."""
        about = stage.about(expected)
        if not about <= self._announced:
            self._announced |= about
            self._send(watch=tuple(about))

    def _leaked(self, part: Part, workload: Workload) -> tuple[str, ...]:
        """Compare what is held at rest with what was after the first cycle of the kind."""
        stage = part.cast.stage
        if not stage.is_at_rest:
            return ()
        held = read_holdings((os.getpid(),), stage.tree)
        known = self._held.setdefault((part.unit, workload.name), held)
        self._held[part.unit, workload.name] = held
        return tuple(f"{one} after a cycle of {workload.name}" for one in held.more_than(known))

    def _is_told(self) -> bool:
        """Say whether the engine has said to end, or is gone."""
        return bool(self._told.poll(0))

    def _is_over(self) -> bool:
        return self._is_told() or (self._until is not None and now() >= self._until)

    def _send_if_due(self) -> None:
        if len(self._batch) >= BATCH or now() - self._sent > _BATCH_SECONDS:
            self._send()

    def _send(self, leaked: tuple[str, ...] = (), watch: tuple[tuple[int, frozenset[str]], ...] = ()) -> None:
        self._line.send(Sent(now(), tuple(self._batch), self._ended, leaked, watch))
        self._batch.clear()
        self._ended, self._sent = 0, now()


def start_performer(
    make: Callable[[Connection, Placard], Performer], line: Connection
) -> tuple[int, Placard]:
    """Run a performer in a process of its own; return its pid, and what it shows.

    Ctrl-C is not for it: the engine tells it when to end.
    """
    placard = Placard()
    pid = os.fork()
    if pid:
        return pid, placard
    status = 1
    try:
        stand_apart()
        make(line, placard).run()
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the engine is gone
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)
