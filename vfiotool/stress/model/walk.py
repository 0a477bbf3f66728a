"""Ways through the model: all that there are, or one at random."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterator

from vfiotool.stress.model.lifecycle import Model, Prediction, State
from vfiotool.stress.model.operation import Bound, Operation

_LEADS_ON = 8
"""How many times as likely as another is an operation that opens or sets what is not yet."""


def explore(
    model: Model, start: State, follows: Callable[[Operation, Prediction], bool]
) -> Iterator[tuple[State, Operation, Prediction]]:
    """Yield all that can be done in each state to which the steps lead that are followed, each state once."""
    queue, seen = deque([start]), {start}
    while queue:
        state = queue.popleft()
        for operation in model.operations(state):
            prediction = model.predict(state, operation)
            yield state, operation, prediction
            if follows(operation, prediction) and prediction.state not in seen:
                seen.add(prediction.state)
                queue.append(prediction.state)


def choose(
    model: Model,
    state: State,
    rng: random.Random,
    *,
    to: Collection[Bound] = tuple(Bound),
    most_fds: int = 3,
) -> tuple[Operation, Prediction]:
    """Choose an operation, rather one that leads on: else a walk would close all before it comes far.

    Members are bound only to these, and there are at most so many device fds at a time. What would end the
    machine is left out.
    """

    def is_possible(prediction: Prediction) -> bool:
        return not prediction.crash and prediction.state.device_fds <= most_fds

    drivers = frozenset(to) | {Bound.NONE}
    choices = [
        (operation, prediction)
        for operation in model.operations(state)
        if operation.to in drivers and is_possible(prediction := model.predict(state, operation))
    ]
    weights = [
        _LEADS_ON if operation.kind.declaration.undoes is None and prediction.state != state else 1
        for operation, prediction in choices
    ]
    return rng.choices(choices, weights)[0]


class Walk:
    """One walk, which its seed decides.

    Who walks does each operation that it yields and looks whether the prediction holds; where it waits, he
    does what ``Model.released`` says, too. ``state`` is then what it leads to. One thread uses it.
    """

    def __init__(
        self,
        model: Model,
        state: State,
        seed: int,
        *,
        to: Collection[Bound] = tuple(Bound),
        most_fds: int = 3,
    ) -> None:
        """Begin in a state; see ``choose``."""
        self.model = model
        self.state = state
        self._to = to
        self._most_fds = most_fds
        self._random = random.Random(seed)  # noqa: S311 - it is to be the same each time

    def steps(self, count: int) -> Iterator[tuple[Operation, Prediction]]:
        """Yield so many operations, each with what must happen."""
        for _ in range(count):
            operation, prediction = choose(
                self.model, self.state, self._random, to=self._to, most_fds=self._most_fds
            )
            yield operation, prediction
            _, last = self.model.released(self.state, operation)[-1]
            self.state = last.state
