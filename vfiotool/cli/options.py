"""The options that several verbs share: which devices, which safety rules, how a driver is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from vfiotool.binding.operations import UNBIND_SECONDS
from vfiotool.binding.refusals import RULES
from vfiotool.cli.completion import complete_endpoint
from vfiotool.cli.settings import json_option

Verb = Callable[..., Any]


timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=UNBIND_SECONDS,
    show_default=True,
    metavar="S",
    help="How long a driver may take to let go, in seconds.",
)


def changing_options(verb: Verb) -> Verb:
    """Add the options that all verbs of this module have."""
    dry_run = click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
    return with_options([dry_run, timeout_option, lifting_options, json_option], verb)


def lifting_options(verb: Verb) -> Verb:
    """Add an option for each rule that can be lifted."""
    flags = [click.option(f"--allow-{rule}", _allow(rule), is_flag=True, help=RULES[rule]) for rule in RULES]
    return with_options(flags, verb)


def with_options(options: Sequence[Callable[[Verb], Verb]], verb: Verb) -> Verb:
    """Add options to a verb, in the order in which its help is to show them."""
    for option in reversed(options):
        verb = option(verb)
    return verb


def allowed_rules(options: Mapping[str, Any]) -> list[str]:
    """Return the rules that the user lifts, from the options of ``changing_options``."""
    return [rule for rule in RULES if options[_allow(rule)]]


def _allow(rule: str) -> str:
    return f"allow_{rule}"


def choosing_options(verb: Verb) -> Verb:
    """Add how the devices are chosen, by the verbs that choose among all."""
    options = [
        click.argument(
            "selectors",
            metavar="ADDRESS...",
            nargs=-1,
            required=True,
            shell_complete=complete_endpoint,
        ),
        click.option("--group", is_flag=True, help="Take every endpoint of the devices' IOMMU groups."),
        click.option("--all", "several", is_flag=True, help="Allow an ADDRESS to match several devices."),
    ]
    return with_options(options, verb)
