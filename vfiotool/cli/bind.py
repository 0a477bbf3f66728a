"""The verbs that change which driver has a device: bind, unbind, restore and recover."""

from __future__ import annotations

from dataclasses import replace

import click

from vfiotool.binding.ownership import parse_owner
from vfiotool.binding.plan import Plan
from vfiotool.cli.completion import complete_recorded
from vfiotool.cli.driver_changes import make_binding, run_and_print, select_endpoints
from vfiotool.cli.options import ChangeOptions, Selection, change_options, selection_options
from vfiotool.cli.settings import Settings, json_option
from vfiotool.host.selectors import select_meant


@click.command("bind")
@selection_options
@click.option(
    "--driver",
    default="vfio-pci",
    show_default=True,
    help="Driver to bind to; 'auto' selects a device's best VFIO driver, 'native' its host driver.",
)
@click.option(
    "--owner",
    metavar="USER[:GROUP]",
    help="Owner of the device nodes, at this bind and at later binds; with --persist, over reboots.",
)
@click.option("--persist", is_flag=True, help="Also bind the devices at each boot.")
@click.option(
    "--power",
    type=click.Choice(["on"]),
    help="'on' keeps the devices awake while they are idle: no D3hot, no D3cold.",
)
@change_options
@json_option
@click.pass_obj
def bind(
    settings: Settings,
    /,
    selection: Selection,
    driver: str,
    owner: str | None,
    persist: bool,
    power: str | None,
    change: ChangeOptions,
    as_json: bool,
) -> None:
    """Bind devices to a driver: all of them, or none.

    The state of each device is recorded before the change; 'vfiotool restore' restores it.
    """
    if persist and power is not None:
        raise click.UsageError("--persist does not keep --power: give one of them, and then the other")
    binding = make_binding(settings, change)
    wanted = select_endpoints(settings, binding, selection)
    granted = None if owner is None else parse_owner(owner)

    def run() -> Plan:
        if not persist:
            return binding.bind(wanted, driver, granted, awake=power is not None)
        from vfiotool.cli.persist_entries import bind_and_persist

        dry_binding = make_binding(settings, replace(change, dry_run=True))
        return bind_and_persist(settings.tree, dry_binding, binding, wanted, driver, granted)

    run_and_print("bind", run, as_json, binding.dry_run)


@click.command("unbind")
@selection_options
@change_options
@json_option
@click.pass_obj
def unbind(settings: Settings, /, selection: Selection, change: ChangeOptions, as_json: bool) -> None:
    """Unbind devices from their drivers."""
    binding = make_binding(settings, change)
    wanted = select_endpoints(settings, binding, selection)
    run_and_print("unbind", lambda: binding.unbind(wanted), as_json, binding.dry_run)


@click.command("restore")
@click.argument("selectors", metavar="ADDRESS...", nargs=-1, shell_complete=complete_recorded)
@click.option("--all", "everything", is_flag=True, help="Restore all recorded devices.")
@change_options
@json_option
@click.pass_obj
def restore(
    settings: Settings,
    /,
    selectors: tuple[str, ...],
    everything: bool,
    change: ChangeOptions,
    as_json: bool,
) -> None:
    """Restore devices to the driver, the override and the state from before vfiotool changed them."""
    if bool(selectors) == everything:
        raise click.UsageError("name the devices to restore, or give --all for all recorded devices")
    binding = make_binding(settings, change)
    if everything:
        run_and_print("restore", binding.restore_all, as_json, binding.dry_run)
    else:
        wanted = select_meant(settings.tree, selectors, several=False)
        run_and_print("restore", lambda: binding.restore(wanted), as_json, binding.dry_run)


@click.command("recover")
@change_options
@json_option
@click.pass_obj
def recover(settings: Settings, /, change: ChangeOptions, as_json: bool) -> None:
    """Undo the incomplete changes of a killed vfiotool, and finish unbinds that waited for a holder."""
    binding = make_binding(settings, change)
    run_and_print("recover", binding.recover, as_json, binding.dry_run)
