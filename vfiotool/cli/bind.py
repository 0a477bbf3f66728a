"""The verbs that change which driver has a device: bind, unbind, restore and recover."""

from __future__ import annotations

from typing import Any

import click

from vfiotool.binding.ownership import parse_owner
from vfiotool.binding.plan import Plan
from vfiotool.cli.completion import complete_recorded
from vfiotool.cli.driver_changes import chosen_endpoints, make_binding, report
from vfiotool.cli.options import changing_options, choosing_options
from vfiotool.cli.settings import Settings
from vfiotool.host.selectors import select_meant


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
    wanted = chosen_endpoints(settings, binding, **options)
    granted = None if owner is None else parse_owner(owner)

    def run() -> Plan:
        if not persist:
            return binding.bind(wanted, driver, granted)
        from vfiotool.cli.persist_entries import bind_and_persist

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
    wanted = chosen_endpoints(settings, binding, **options)
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
