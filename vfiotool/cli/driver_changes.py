"""Steps of the verbs that change drivers: select devices, run an operation of Binding, print its plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import Plan
from vfiotool.cli.options import ChangeOptions, Selection
from vfiotool.cli.settings import Settings
from vfiotool.cli.signals import exit_on_signals
from vfiotool.host.refusals import PlanRefusedError
from vfiotool.host.selectors import select_meant
from vfiotool.render.documents import write_document
from vfiotool.render.errors import print_error
from vfiotool.util.text import printable

CLEAR_LINE = "\x1b[K"
"""Clears a terminal from the cursor to the end of the line (ECMA-48, EL)."""


def select_endpoints(settings: Settings, binding: Binding, selection: Selection) -> list[str]:
    """Return the addresses of the devices that a selection names."""
    several = selection.several or selection.group
    addresses = select_meant(settings.tree, selection.selectors, several=several)
    return binding.group_members(addresses) if selection.group else addresses


def make_binding(settings: Settings, change: ChangeOptions) -> Binding:
    """Return the Binding that changes this machine, with these options.

    Raises:
        click.UsageError: ``--sysroot`` names another machine.
    """
    settings.require_live()
    return Binding(
        state_dir=settings.state_dir,
        allowed=change.allowed,
        dry_run=change.dry_run,
        timeout=change.timeout,
        progress=_show_progress if sys.stderr.isatty() else None,
    )


def _show_progress(line: str) -> None:
    """Show a line in place of the former one; an empty line leaves nothing."""
    click.echo(f"\r{line}{CLEAR_LINE}", nl=False, err=True)


def run_and_print(
    verb: str,
    run: Callable[[], Plan],
    as_json: bool,
    dry_run: bool,
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Run the operation of a verb and print its changes or, in a dry run, its writes.

    ``more`` returns further fields of the JSON document; it is called after the run.

    Raises:
        VfioToolError: what ``run`` raises, or the last failure of its plan; the others are printed.
    """
    exit_on_signals()
    try:
        plan = run()
    except PlanRefusedError as error:
        if as_json:
            write_document(verb, more() | {"changed": (), "steps": (), "refused": error.refusals})
        raise
    for warning in plan.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    if as_json:
        write_document(verb, more() | _document(plan))
    elif dry_run:
        for step in plan.writes:
            click.echo(str(step))
    else:
        for change in plan.changes:
            click.echo(f"{change.address}: {change.before or 'no driver'} -> {change.after or 'no driver'}")
    if plan.failures:
        *others, last = plan.failures
        for failure in others:
            print_error(failure)
        raise last


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "changed": [
            {"address": change.address, "from": change.before, "to": change.after} for change in plan.changes
        ],
        "steps": [{"path": step.path, "value": step.value} for step in plan.writes],
        "refused": [
            refusal
            for error in plan.failures
            if isinstance(error, PlanRefusedError)
            for refusal in error.refusals
        ],
    }
