"""Paths through the model: all of them, or a random walk."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterator

from vfiotool.stress.model.lifecycle import Model, Prediction, State
from vfiotool.stress.model.operation import Bound, Operation

_LEADS_ON = 8
"""How many times more often a walk chooses an operation that opens, sets or binds something."""


def explore(
    model: Model, start: State, follows: Callable[[Operation, Prediction], bool]
) -> Iterator[tuple[State, Operation, Prediction]]:
    """Yield each state, operation and prediction that can be reached; each state is visited once.

    ``follows`` returns True for a step whose resulting state is visited too.
    """
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
    """Choose an operation, more often an opening one than a closing one, so that a walk reaches all states.

    ``to`` are the drivers that members are bound to; ``most_fds`` is the highest number of open device fds.
    Operations that would crash the machine are left out.
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
    """A random walk, which depends on its seed alone.

    The caller executes each operation that the walk yields, and compares the result with the prediction. If
    an operation blocks, the caller also executes the operations of ``Model.released``. ``state`` is the state
    after the last operation. Not thread-safe.
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
        """Start in a state. For ``to`` and ``most_fds`` see ``choose``."""
        self.model = model
        self.state = state
        self._to = to
        self._most_fds = most_fds
        self._random = random.Random(seed)  # noqa: S311 - must be repeatable

    def steps(self, count: int) -> Iterator[tuple[Operation, Prediction]]:
        """Yield ``count`` operations, each with its prediction."""
        for _ in range(count):
            operation, prediction = choose(
                self.model, self.state, self._random, to=self._to, most_fds=self._most_fds
            )
            yield operation, prediction
            _, last = self.model.released(self.state, operation)[-1]
            self.state = last.state
