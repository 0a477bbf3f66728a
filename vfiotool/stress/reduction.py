"""What went otherwise in a run, reduced on the devices themselves to the fewest operations that show it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence

from vfiotool.errors import VfioToolError
from vfiotool.host.tree import Tree
from vfiotool.stress.cast import Cast
from vfiotool.stress.observer import Observer
from vfiotool.stress.order import kernel_model
from vfiotool.stress.replay import Finding, actions_of, failing_prefix, shrunk
from vfiotool.stress.stage import Stage, Unit
from vfiotool.stress.taking import GIVE_BACK_SECONDS, Taking
from vfiotool.stress.trace import Trace


def reduce(trace: Trace, units: Sequence[Unit], state_dir: str, allowed: Collection[str]) -> Finding:
    """Take the devices of the first unit in which an operation went otherwise, and find what shows it.

    Its cycle alone is tried first, then all that was done in the unit. Where each operation gave what it had
    to, monitors watch what is done in one unit after the other. Devices are given back.

    Raises:
        VfioToolError: all goes as expected now, or the devices could not be given back.
        Others as ``Taking`` does.
    """
    model = kernel_model(Tree(), state_dir)
    failed = next((line.unit for line in trace.lines if line.unexpected), None)
    for number in actions_of(trace) if failed is None else [failed]:
        with _taken(units[number], state_dir, allowed):
            reduced = _watched if failed is None else _found
            finding = reduced(Cast(model, units[number]).stage, trace, number)
        if finding is not None:
            return finding
    raise VfioToolError(
        "all goes as expected now: it does not show again by doing the same",
        hint="it may take its time, or two at once: stress the same workload for longer",
    )


@contextlib.contextmanager
def _taken(unit: Unit, state_dir: str, allowed: Collection[str]) -> Iterator[None]:
    taking = Taking(unit.members, state_dir, allowed, lambda _: None)
    try:
        yield
    finally:
        lost = taking.give_back(GIVE_BACK_SECONDS)
    if lost:
        raise VfioToolError(f"not all is as it was: {lost[0]}", hint="'vfiotool restore' gives devices back")


def _found(stage: Stage, trace: Trace, number: int) -> Finding | None:
    with contextlib.closing(stage):
        for actions in (failing_prefix(trace, number), actions_of(trace)[number]):
            if finding := shrunk(stage, actions, unit=number):
                return finding
    return None


def _watched(stage: Stage, trace: Trace, number: int) -> Finding | None:
    with contextlib.closing(stage), contextlib.closing(Observer(stage)) as observer:
        return shrunk(stage, actions_of(trace)[number], unit=number, watch=observer)
