"""The verb that creates and removes VFs."""

from __future__ import annotations

from typing import Any

import click

from vfiotool.cli.completion import complete_endpoint
from vfiotool.cli.driver_changes import make_binding, run_and_print
from vfiotool.cli.options import ChangeOptions, change_options
from vfiotool.cli.settings import Settings, json_option
from vfiotool.host.attributes import read_fields
from vfiotool.host.devices import PciDevice, find_device, read_devices
from vfiotool.host.selectors import select_meant
from vfiotool.pci.names import PciNames
from vfiotool.render.tables import print_devices

_MOST = 0xFFFF


@click.command("sriov")
@click.argument("selector", metavar="ADDRESS", shell_complete=complete_endpoint)
@click.argument("count", metavar="N", type=click.IntRange(0, _MOST))
@click.option("--bind", is_flag=True, help="Bind the new VFs to vfio-pci, before any host driver.")
@change_options
@json_option
@click.pass_obj
def sriov(
    settings: Settings, /, selector: str, count: int, bind: bool, change: ChangeOptions, as_json: bool
) -> None:
    """Create N VFs of a PF; 0 removes its VFs.

    If the PF has another number of VFs, they are removed first. 'vfiotool restore' restores the former
    number.
    """
    if bind and not count:
        raise click.UsageError("--bind needs VFs, and N is 0")
    binding = make_binding(settings, change)
    (pf,) = select_meant(settings.tree, [selector], several=False)

    def vfs() -> dict[str, Any]:
        names, state_dir = PciNames.of_this_machine(), settings.state_dir
        device = find_device(read_devices(settings.tree, [pf], names, state_dir=state_dir), pf)
        return {"vfs": read_fields(settings.tree, device.vfs, names, state_dir=state_dir)}

    run_and_print("sriov", lambda: binding.sriov(pf, count, bind=bind), as_json, binding.dry_run, vfs)
    if not as_json and not binding.dry_run and (there := vfs()["vfs"]):
        print_devices([PciDevice(**one) for one in there])
