"""The click commands of the verbs list, groups and show."""

from __future__ import annotations

import click

from vfiotool.cli import reading
from vfiotool.cli.completion import complete_device, complete_group
from vfiotool.cli.settings import Settings, json_option


@click.command("list")
@click.argument("selectors", metavar="[ADDRESS]...", nargs=-1, shell_complete=complete_device)
@json_option
@click.pass_obj
def list_devices(settings: Settings, /, selectors: tuple[str, ...], as_json: bool) -> None:
    """List PCI devices: the devices that ADDRESS selects, or all devices."""
    reading.list_devices(settings.tree, settings.state_dir, selectors, as_json)


@click.command("groups")
@click.argument("numbers", metavar="[N]...", nargs=-1, shell_complete=complete_group)
@json_option
@click.pass_obj
def list_groups(settings: Settings, /, numbers: tuple[str, ...], as_json: bool) -> None:
    """List IOMMU groups with their devices, blockers and holders: the groups N, or all groups."""
    reading.list_groups(settings.tree, settings.state_dir, numbers, as_json)


@click.command("show")
@click.argument("selector", metavar="ADDRESS", shell_complete=complete_device)
@json_option
@click.pass_obj
def show_device(settings: Settings, /, selector: str, as_json: bool) -> None:
    """Show all details of a device: capabilities, BARs, link, group, users, and how to free the device."""
    reading.show_device(settings.tree, settings.state_dir, [selector], as_json)
