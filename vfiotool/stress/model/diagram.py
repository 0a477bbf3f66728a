"""Draw the model as a Mermaid state diagram of a group with one device."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.stress.model.lifecycle import ContainerState, Member, Model, Prediction, State
from vfiotool.stress.model.operation import Bound, Operation
from vfiotool.stress.model.walk import explore


def draw(model: Model) -> str:
    """Return the diagram of a group with one member, an open container, and at most one device fd.

    Operations that the kernel refuses are not drawn. Brackets hold the condition on which an operation waits.
    """
    lines = ["stateDiagram-v2"]
    names = dict[State, str]()
    for before, label, after in _transitions(model):
        for state in (before, after):
            if state not in names:
                names[state] = f"s{len(names)}"
                lines.append(f'    state "{_described(state)}" as {names[state]}')
        lines.append(f"    {names[before]} --> {names[after]}: {label}")
    lines.insert(1, "    [*] --> s0")
    return "\n".join(lines) + "\n"


def _transitions(model: Model) -> Iterator[tuple[State, str, State]]:
    start = State((Member(),), (ContainerState(is_open=True),))
    for state, operation, prediction in explore(model, start, _leads_on):
        name = operation.kind.value
        if _is_drawn(operation, prediction) and prediction.waits_for:
            yield state, f"{name} (waits until {prediction.waits_for})", state
        elif _is_drawn(operation, prediction) and prediction.state != state:
            yield state, name, prediction.state


def _leads_on(operation: Operation, prediction: Prediction) -> bool:
    return _is_drawn(operation, prediction) and not prediction.waits_for


def _is_drawn(operation: Operation, prediction: Prediction) -> bool:
    is_in_diagram = operation.kind.declaration.is_drawn and operation.to in (Bound.NONE, Bound.VFIO)
    return is_in_diagram and prediction.state.device_fds <= 1


def _described(state: State) -> str:
    (member,) = state.members
    parts = [
        "on vfio-pci" if member.bound is Bound.VFIO else "no driver",
        "group open" if state.is_open and not state.is_orphaned else "",
        "group fd of a group that is no more" if state.is_orphaned else "",
        "" if state.container is None else "container with an IOMMU" if state.has_iommu else "container",
        "device fd" if member.fds else "",
    ]
    return ", ".join(part for part in parts if part)
