"""What went otherwise in a run, reduced on the devices themselves to the fewest operations that show it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vfiotool.errors import VfioToolError
from vfiotool.host.tree import Tree
from vfiotool.stress.cast import Cast
from vfiotool.stress.model import Model
from vfiotool.stress.order import kernel_model
from vfiotool.stress.replay import Finding, actions_of, failing_prefix, shrunk
from vfiotool.stress.stage import Unit
from vfiotool.stress.taking import GIVE_BACK_SECONDS, Taking
from vfiotool.stress.trace import Trace


def reduce(trace: Trace, units: Sequence[Unit], state_dir: str, allowed: Collection[str]) -> Finding:
    """Take the devices of the first unit in which something went otherwise, and find what shows it.

    Its cycle alone is tried first, then all that was done in the unit. Devices are given back.

    Raises:
        VfioToolError: nothing in the trace went otherwise, or all goes as expected now, or the devices
            could not be given back.
        Others as ``Taking`` does.
    """
    number = next((line.unit for line in trace.lines if line.unexpected), None)
    if number is None:
        raise VfioToolError(
            "each operation of the trace gave what it had to: there is nothing to reduce",
            hint="what the monitors found is not of one operation: 'vfiotool stress replay' shows it again",
        )
    model = kernel_model(Tree(), state_dir)
    unit = units[number]
    taking = Taking(unit.members, state_dir, allowed, lambda _: None)
    try:
        finding = _found(model, unit, trace, number)
    finally:
        lost = taking.give_back(GIVE_BACK_SECONDS)
    if lost:
        raise VfioToolError(f"not all is as it was: {lost[0]}", hint="'vfiotool restore' gives devices back")
    if finding is None:
        raise VfioToolError(
            "all goes as expected now: it does not show again by doing the same",
            hint="it may take its time, or two at once: stress the same workload for longer",
        )
    return finding


def _found(model: Model, unit: Unit, trace: Trace, number: int) -> Finding | None:
    cast = Cast(model, unit)
    try:
        for actions in (failing_prefix(trace, number), actions_of(trace)[number]):
            finding = shrunk(cast.stage, actions, unit=number)
            if finding is not None:
                return finding
    finally:
        cast.stage.close()
    return None
