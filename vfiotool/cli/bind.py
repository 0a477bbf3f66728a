"""The verbs that change which driver has a device: bind, unbind, restore and recover."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from vfiotool.binding.operations import UNBIND_SECONDS, Binding
from vfiotool.binding.ownership import parse_owner
from vfiotool.binding.plan import Plan
from vfiotool.binding.refusals import RULES, PlanRefusedError
from vfiotool.cli.completion import complete_endpoint, complete_recorded
from vfiotool.cli.settings import Settings, json_option
from vfiotool.cli.signals import unwind_when_told_to_end
from vfiotool.host.selectors import select_meant
from vfiotool.render.documents import write_document

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


@click.command("bind")
@choosing_options
@click.option(
    "--driver",
    default="vfio-pci",
    show_default=True,
    help="The driver to bind to; 'auto' is the VFIO driver that serves each device best.",
)
@click.option("--owner", metavar="USER[:GROUP]", help="Who may open the nodes, at this bind and later ones.")
@click.option("--persist", is_flag=True, help="Have it so after each start of the machine too.")
@changing_options
@click.pass_obj
def bind(
    settings: Settings, /, driver: str, owner: str | None, persist: bool, as_json: bool, **options: Any
) -> None:
    """Hand devices to a driver: all of them, or none.

    What each device was is recorded first; 'vfiotool restore' brings it back.
    """
    binding = make_binding(settings, **options)
    wanted = _chosen(settings, binding, **options)
    granted = None if owner is None else parse_owner(owner)

    def run() -> Plan:
        if not persist:
            return binding.bind(wanted, driver, granted)
        from vfiotool.cli.persist import bind_and_persist

        looking = make_binding(settings, **options | {"dry_run": True})
        return bind_and_persist(settings.tree, looking, binding, wanted, driver, granted)

    report("bind", run, as_json, binding.dry_run)


@click.command("unbind")
@choosing_options
@changing_options
@click.pass_obj
def unbind(settings: Settings, /, as_json: bool, **options: Any) -> None:
    """Leave devices without a driver."""
    binding = make_binding(settings, **options)
    wanted = _chosen(settings, binding, **options)
    report("unbind", lambda: binding.unbind(wanted), as_json, binding.dry_run)


@click.command("restore")
@click.argument("selectors", metavar="ADDRESS...", nargs=-1, shell_complete=complete_recorded)
@click.option("--all", "everything", is_flag=True, help="Restore every device that is recorded.")
@changing_options
@click.pass_obj
def restore(
    settings: Settings, /, selectors: tuple[str, ...], everything: bool, as_json: bool, **options: Any
) -> None:
    """Bring devices back to the driver and override that they had before vfiotool changed them."""
    if bool(selectors) == everything:
        raise click.UsageError("name the devices to restore, or give --all for all that are recorded")
    binding = make_binding(settings, **options)
    wanted = binding.recorded() if everything else select_meant(settings.tree, selectors, several=False)
    report("restore", lambda: binding.restore(wanted), as_json, binding.dry_run)


@click.command("recover")
@changing_options
@click.pass_obj
def recover(settings: Settings, /, as_json: bool, **options: Any) -> None:
    """Undo what a killed vfiotool left half done, and finish what waited for a holder."""
    binding = make_binding(settings, **options)
    report("recover", binding.recover, as_json, binding.dry_run)


def _chosen(settings: Settings, binding: Binding, **options: Any) -> list[str]:
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
