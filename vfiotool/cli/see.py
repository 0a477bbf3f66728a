"""The reading verbs: list, groups and show."""

from __future__ import annotations

import click

from vfiotool.cli.listing import write_listing
from vfiotool.cli.settings import Settings, json_option
from vfiotool.errors import SelectorError
from vfiotool.host.attributes import addresses
from vfiotool.host.details import read_details
from vfiotool.host.devices import Device, find_device, read_devices
from vfiotool.host.groups import TURN_ON_IOMMU, group_ids, read_group, read_groups
from vfiotool.host.selectors import select, select_meant
from vfiotool.pci.names import PciNames
from vfiotool.render.documents import to_json, write_document


@click.command("list")
@click.argument("selectors", metavar="[ADDRESS]...", nargs=-1)
@json_option
@click.pass_obj
def list_devices(settings: Settings, selectors: tuple[str, ...], as_json: bool) -> None:
    """List PCI devices: all, or those that each ADDRESS names."""
    tree = settings.tree
    wanted = select(tree, selectors) if selectors else addresses(tree)
    if as_json:
        write_listing(tree, wanted, state_dir=settings.state_dir)
        return
    devices = read_devices(tree, wanted, PciNames.of_this_machine(), state_dir=settings.state_dir)
    from vfiotool.render.tables import print_devices

    print_devices(devices)


@click.command("groups")
@click.argument("numbers", metavar="[N]...", nargs=-1)
@json_option
@click.pass_obj
def list_groups(settings: Settings, numbers: tuple[str, ...], as_json: bool) -> None:
    """List IOMMU groups: their devices, whether userspace may have them, and who holds them."""
    tree = settings.tree
    devices = _all_devices(settings)
    if numbers:
        groups = [read_group(tree, _group_number(number), devices) for number in numbers]
    else:
        groups = read_groups(tree, group_ids(tree), devices)
    if as_json:
        write_document("groups", {"groups": groups})
        return
    if not groups:
        click.echo("This machine has no IOMMU groups: its IOMMU is off, or it has none.", err=True)
        click.echo(f"hint: {TURN_ON_IOMMU}", err=True)
        return
    from vfiotool.render.tables import print_groups

    print_groups(groups, devices)


@click.command("show")
@click.argument("selector", metavar="ADDRESS")
@json_option
@click.pass_obj
def show_device(settings: Settings, selector: str, as_json: bool) -> None:
    """Show all about one device: capabilities, BARs, link, group, users, and how to free it."""
    tree = settings.tree
    (address,) = select_meant(tree, [selector], several=False)
    devices = _all_devices(settings)
    details = read_details(tree, find_device(devices, address), devices)
    if as_json:
        write_document("show", to_json(details))
        return
    from vfiotool.render.tables import print_details

    print_details(details)


def _all_devices(settings: Settings) -> list[Device]:
    tree = settings.tree
    return read_devices(tree, addresses(tree), PciNames.of_this_machine(), state_dir=settings.state_dir)


def _group_number(text: str) -> int:
    number = text.removeprefix("group:")
    if not number.isdecimal() or len(number) > 10:  # the kernel's are of type int
        raise SelectorError(f"'{text}' is not a group", hint="a group is a number: 'vfiotool groups'")
    return int(number)
