"""Groups of click parameters whose values a verb gets as one frozen dataclass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

Verb = Callable[..., Any]
Decorator = Callable[[Verb], Verb]


def with_options(parameters: Sequence[Decorator]) -> Decorator:
    """Return a decorator that adds click parameters to a verb; its help lists them in this order."""

    def add(verb: Verb) -> Verb:
        for parameter in reversed(parameters):
            verb = parameter(verb)
        return verb

    return add


def grouped(name: str, kind: type[Any], parameters: Sequence[Decorator]) -> Decorator:
    """Return a decorator that adds click parameters to a verb and passes their values as one argument.

    The verb gets ``name``, an instance of the dataclass ``kind``, which has a field for each parameter.
    """
    names = [field.name for field in fields(kind)]

    def add(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def run(*args: Any, **values: Any) -> Any:
            options = kind(**{one: values.pop(one) for one in names})
            return verb(*args, **values, **{name: options})

        return with_options(parameters)(run)

    return add
