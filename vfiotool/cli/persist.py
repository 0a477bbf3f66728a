"""``vfiotool persist``: devices that are bound to a VFIO driver at each boot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from vfiotool.binding.operations import Binding
from vfiotool.binding.ownership import parse_owner
from vfiotool.binding.persist import entries as rules
from vfiotool.binding.persist.initramfs_hooks import rebuild_commands
from vfiotool.binding.persist.udev_rule import PersistEntry
from vfiotool.cli.completion import complete_persisted
from vfiotool.cli.driver_changes import make_binding, run_and_print, select_endpoints
from vfiotool.cli.options import ChangeOptions, Selection, allow_options, change_options, selection_options
from vfiotool.cli.persist_entries import bind_present, entries_of, print_rebuild_note
from vfiotool.cli.settings import Settings, json_option
from vfiotool.errors import DeviceNotFoundError
from vfiotool.host.attributes import device_path
from vfiotool.host.selectors import select
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_address, parse_address
from vfiotool.render.documents import write_document


@click.group("persist")
def persist() -> None:
    """Bind devices to a VFIO driver at each boot, before their own driver."""


@persist.command()
@selection_options
@click.option(
    "--driver",
    default="vfio-pci",
    show_default=True,
    help="VFIO driver to bind to; 'auto' selects the driver that fits each device best.",
)
@click.option("--owner", metavar="USER[:GROUP]", help="Owner of the device nodes, from the next boot on.")
@allow_options
@json_option
@click.pass_obj
def add(
    settings: Settings,
    /,
    selection: Selection,
    driver: str,
    owner: str | None,
    allowed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Bind devices to a VFIO driver from the next boot on. No device is bound now.

    'persist add' refuses the same devices as 'vfiotool bind'.
    """
    tree = settings.require_live()
    dry_binding = Binding(state_dir=settings.state_dir, allowed=allowed, dry_run=True)
    granted = None if owner is None else parse_owner(owner)
    planned = dry_binding.bind(select_endpoints(settings, dry_binding, selection), driver, granted)
    for warning in planned.warnings:
        click.echo(f"warning: {warning}", err=True)
    added = entries_of(tree, planned, driver, granted, allowed)
    rules.add_all(tree, added)
    _report(tree, added, as_json, "is added")


@persist.command("list")
@json_option
@click.pass_obj
def list_entries(settings: Settings, /, as_json: bool) -> None:
    """List the entries, and the present address and driver of their devices."""
    entries = [_described(settings.tree, entry) for entry in rules.entries(settings.tree)]
    if as_json:
        write_document("persist", {"entries": entries})
        return
    from vfiotool.render.persist_entries import print_entries

    print_entries(entries)


@persist.command()
@click.argument("selectors", metavar="ADDRESS...", nargs=-1, shell_complete=complete_persisted)
@click.option("--all", "everything", is_flag=True, help="Remove all entries.")
@json_option
@click.pass_obj
def remove(settings: Settings, /, selectors: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Leave devices to their own drivers from the next boot on. No device is bound now.

    ADDRESS can be the path that 'persist list' shows, for a device that is absent.
    """
    tree = settings.require_live()
    chosen = _chosen_or_all(tree, selectors, everything)
    rules.remove_all(tree, chosen)
    _report(tree, chosen, as_json, "is removed")


@persist.command()
@click.argument("selectors", metavar="ADDRESS...", nargs=-1, shell_complete=complete_persisted)
@click.option("--all", "everything", is_flag=True, help="Apply all entries.")
@change_options
@json_option
@click.pass_obj
def apply(
    settings: Settings,
    /,
    selectors: tuple[str, ...],
    everything: bool,
    change: ChangeOptions,
    as_json: bool,
) -> None:
    """Bind devices with an entry now: devices that were plugged in while their own driver was loaded.

    A device that is in use is refused, as by 'vfiotool bind'; the others are bound. A udev rule runs this
    command for a device that arrives.
    """
    tree = settings.require_live()
    chosen = _chosen_or_all(tree, selectors, everything)

    def described() -> dict[str, Any]:
        return {"entries": [_described(tree, entry) for entry in chosen]}

    def lifting(rules: tuple[str, ...]) -> Binding:
        return make_binding(settings, replace(change, allowed=(*change.allowed, *rules)))

    run_and_print(
        "persist", lambda: bind_present(tree, lifting, chosen), as_json, change.dry_run, more=described
    )


@persist.command()
@json_option
@click.pass_obj
def check(settings: Settings, /, as_json: bool) -> int:
    """Check if each entry holds now and will hold at the next boot. Exits with 1 if a check fails."""
    from vfiotool.binding.persist.check import check as check_entry

    tree = settings.tree
    checked = [(entry, check_entry(tree, entry)) for entry in rules.entries(tree)]
    if as_json:
        entries = [_described(tree, entry) | {"checks": checks} for entry, checks in checked]
        write_document("persist", {"entries": entries})
    else:
        from vfiotool.render.checks import print_checks

        for entry, checks in checked:
            click.echo(f"{entry.path} ({entry.address})")
            print_checks(checks)
    return int(any(one.ok is False for _, checks in checked for one in checks))


def _chosen_or_all(tree: Tree, selectors: Sequence[str], everything: bool) -> list[PersistEntry]:
    if bool(selectors) == everything:
        raise click.UsageError("name the devices, or give --all for all entries")
    known = rules.entries(tree)
    return known if everything else _chosen(tree, known, selectors)


def _chosen(tree: Tree, known: Sequence[PersistEntry], selectors: Iterable[str]) -> list[PersistEntry]:
    chosen: dict[PersistEntry, None] = {}
    for selector in selectors:
        found = _named(tree, known, selector)
        if not found:
            raise DeviceNotFoundError(
                f"no entry matches '{selector}'", hint="'vfiotool persist list' shows all entries"
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _named(tree: Tree, known: Sequence[PersistEntry], selector: str) -> list[PersistEntry]:
    """Return the entries of a path, else of the present devices, else of a former address."""
    if "/" in selector:
        return [entry for entry in known if entry.path == selector]
    try:
        present = select(tree, [selector])
    except DeviceNotFoundError:
        present = []
    found = [entry for entry in known if rules.present_at(tree, entry) in present]
    if not found and is_address(selector):
        address = parse_address(selector)
        found = [e for e in known if e.address == address and rules.present_at(tree, e) is None]
    return found


def _described(tree: Tree, entry: PersistEntry) -> dict[str, Any]:
    """Return the fields of an entry, and the present address and driver of its device."""
    address = rules.present_at(tree, entry)
    driver = None if address is None else tree.find_link(f"{device_path(address)}/driver")
    return asdict(entry) | {"rule": entry.rule, "present_at": address, "bound_to": driver}


def _report(tree: Tree, entries: Sequence[PersistEntry], as_json: bool, done: str) -> None:
    commands = rebuild_commands(tree)
    if as_json:
        described = [_described(tree, entry) for entry in entries]
        write_document("persist", {"entries": described, "rebuild": commands})
    else:
        for entry in entries:
            owner = "" if entry.owner is None else f", owner {entry.owner},"
            click.echo(f"{entry.path} ({entry.address}): {entry.driver}{owner} {done}")
    if entries:
        print_rebuild_note(tree, commands)
