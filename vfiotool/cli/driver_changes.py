"""How a verb changes drivers: select the devices, run an operation of the binding, print its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import Plan
from vfiotool.binding.refusals import PlanRefusedError
from vfiotool.cli.options import allowed_rules
from vfiotool.cli.settings import Settings
from vfiotool.cli.signals import unwind_when_told_to_end
from vfiotool.host.selectors import select_meant
from vfiotool.render.documents import write_document


def chosen_endpoints(settings: Settings, binding: Binding, **options: Any) -> list[str]:
    group = options["group"]
    wanted = select_meant(settings.tree, options["selectors"], several=options["several"] or group)
    return binding.group_members(wanted) if group else wanted


def make_binding(settings: Settings, **options: Any) -> Binding:
    """Return what changes this machine as the options say."""
    if not settings.tree.is_live:
        raise click.UsageError("--sysroot is for looking: only this machine can be changed")
    return Binding(
        state_dir=settings.state_dir,
        allowed=allowed_rules(options),
        dry_run=options["dry_run"],
        timeout=options["timeout"],
    )


def report(
    verb: str,
    run: Callable[[], Plan],
    as_json: bool,
    dry_run: bool,
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Run a verb and print what it did, or, in a dry run, what it would write.

    ``more`` has further fields of the document, from after the run.
    """
    unwind_when_told_to_end()
    try:
        plan = run()
    except PlanRefusedError as error:
        if as_json:
            write_document(verb, more() | {"changed": (), "steps": (), "refused": error.refusals})
        raise
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        write_document(verb, more() | _document(plan))
    elif dry_run:
        for step in plan.steps:
            click.echo(str(step))
    else:
        for change in plan.changes:
            click.echo(f"{change.address}: {change.before or 'no driver'} -> {change.after or 'no driver'}")


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "changed": [
            {"address": change.address, "from": change.before, "to": change.after} for change in plan.changes
        ],
        "steps": [{"path": step.path, "value": step.value} for step in plan.steps],
        "refused": (),
    }
