"""The model of the running kernel, and models that are wrong in one rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vfiotool.host.tree import Tree
from vfiotool.stress.groups import running_model
from vfiotool.stress.model.lifecycle import Model, Prediction, State
from vfiotool.stress.model.operation import Kind, Operation


def model() -> Model:
    """Return the rules of this kernel."""
    return running_model(Tree())


class Mistaken(Model):
    """The rules of this kernel, except one."""

    def __init__(self, kind: Kind, **mistakes: Any) -> None:
        right = model()
        super().__init__(right.era, has_device_class=right.has_device_class)
        self._kind = kind
        self._mistakes = mistakes

    def predict(self, state: State, operation: Operation) -> Prediction:
        prediction = super().predict(state, operation)
        return replace(prediction, **self._mistakes) if operation.kind is self._kind else prediction
