"""The options that several verbs share, and the frozen dataclasses in which the verbs get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from vfiotool.binding.operations import UNBIND_SECONDS
from vfiotool.cli.completion import complete_endpoint
from vfiotool.cli.option_groups import grouped, with_options
from vfiotool.host.refusals import LIFTABLE_RULES


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
        click.option("--group", is_flag=True, help="Select every endpoint in the devices' IOMMU groups."),
        click.option("--all", "several", is_flag=True, help="Allow an ADDRESS to match several devices."),
    ],
)
"""Which devices; the verb gets ``selection``."""

change_options = grouped(
    "change",
    ChangeOptions,
    [
        click.option("--dry-run", is_flag=True, help="Print the writes without making them."),
        timeout_option,
        allow_options,
    ],
)
"""How drivers are changed; the verb gets ``change``."""


def allow_flags(allowed: Sequence[str]) -> list[str]:
    """Return the options that lift these rules, as words of a command line."""
    return [f"--allow-{rule}" for rule in allowed]
