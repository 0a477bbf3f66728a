"""The options that several verbs share, and the frozen dataclasses in which the verbs get them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import click

from vfiotool.binding.operations import UNBIND_SECONDS
from vfiotool.binding.refusals import LIFTABLE_RULES
from vfiotool.cli.completion import complete_endpoint

Verb = Callable[..., Any]
Decorator = Callable[[Verb], Verb]


@dataclass(frozen=True, slots=True)
class Selection:
    """The devices that a verb works on: ``ADDRESS...``, ``--group`` and ``--all`` (``several``)."""

    selectors: tuple[str, ...]
    group: bool
    several: bool


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """How a verb changes drivers. ``timeout`` is in seconds, ``allowed`` names the lifted safety rules."""

    dry_run: bool
    timeout: float
    allowed: tuple[str, ...]


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


def _in_order(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(rule for rule in LIFTABLE_RULES if rule in given)


timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=UNBIND_SECONDS,
    show_default=True,
    metavar="S",
    help="How long a driver may take to release its device, in seconds.",
)

allow_options = with_options(
    [
        click.option(
            f"--allow-{rule}", "allowed", flag_value=rule, multiple=True, callback=_in_order, help=text
        )
        for rule, text in LIFTABLE_RULES.items()
    ]
)
"""An option for each safety rule that can be lifted; the verb gets ``allowed``, the rules that are."""

selection_options = grouped(
    "selection",
    Selection,
    [
        click.argument(
            "selectors", metavar="ADDRESS...", nargs=-1, required=True, shell_complete=complete_endpoint
        ),
        click.option("--group", is_flag=True, help="Take every endpoint of the devices' IOMMU groups."),
        click.option("--all", "several", is_flag=True, help="Allow an ADDRESS to match several devices."),
    ],
)
"""Which devices; the verb gets ``selection``."""

change_options = grouped(
    "change",
    ChangeOptions,
    [
        click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing."),
        timeout_option,
        allow_options,
    ],
)
"""How drivers are changed; the verb gets ``change``."""


def allow_flags(allowed: Sequence[str]) -> list[str]:
    """Return the options that lift these rules, as words of a command line."""
    return [f"--allow-{rule}" for rule in allowed]
