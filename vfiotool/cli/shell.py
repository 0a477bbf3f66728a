"""The verb that opens a device and leaves the rest to the user: a Python prompt, or a script from stdin."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

import click

import vfiotool
from vfiotool.binding.operations import Binding
from vfiotool.cli.completion import complete_endpoint
from vfiotool.cli.opening import is_on_vfio, open_selected, select_live
from vfiotool.cli.options import allow_options, timeout_option
from vfiotool.cli.parameters import iommu_option, region_name
from vfiotool.cli.prompt import compile_script, run_prompt, run_script
from vfiotool.cli.settings import Settings
from vfiotool.cli.signals import exit_on_signals, signals_ignored
from vfiotool.errors import VfioToolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vfiotool.vfio.device import Device


@click.command("shell")
@click.argument("selector", metavar="ADDRESS", shell_complete=complete_endpoint)
@iommu_option
@click.option("--bind", is_flag=True, help="Bind it to vfio-pci for as long as the prompt is there.")
@timeout_option
@allow_options
@click.pass_obj
def shell(
    settings: Settings, /, selector: str, mode: str, bind: bool, timeout: float, allowed: tuple[str, ...]
) -> int:
    """Give a Python prompt with a device of a VFIO driver open, as 'dev'.

    What comes from a stdin that is no terminal is run as a script. However either ends, the device is closed,
    and with --bind restored.
    """
    if allowed and not bind:
        raise click.UsageError("--allow-… lifts a rule of --bind, which is not given")
    address = select_live(settings, selector)
    script = _read_script()
    exit_on_signals()
    is_lent = bind and not is_on_vfio(settings.tree, address)
    with contextlib.ExitStack() as stack:
        if is_lent:
            binding = Binding(state_dir=settings.state_dir, allowed=allowed, timeout=timeout)
            stack.enter_context(_bound(binding, address))
        device = stack.enter_context(open_selected(settings, address, mode))
        device.on_request = _tell_of_request
        names = _names(device)  # which outlive the device, so that nothing of it is lost while it is open
        if script is not None:
            return run_script(script, names)
        run_prompt(names, _banner(device, is_lent=is_lent))
        return 0


def _read_script() -> CodeType | None:
    """Return the script that stdin has, ``None`` where a person is at it."""
    if sys.stdin is None:
        raise click.UsageError("there is no stdin: give it a script, or a terminal")
    return None if sys.stdin.isatty() else compile_script(sys.stdin.buffer.read())


@contextlib.contextmanager
def _bound(binding: Binding, address: str) -> Iterator[None]:
    """Have a device on vfio-pci for a ``with`` block."""
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, binding, address)  # a signal can come as soon as it is bound
        try:
            plan = binding.bind([address])
        except VfioToolError:
            stack.pop_all()  # it is as it was before, or 'recover' has to see to it
            raise
        for warning in plan.warnings:
            click.echo(f"warning: {warning}", err=True)
        yield


def _restore(binding: Binding, address: str) -> None:
    with signals_ignored():
        if address in binding.recorded():
            binding.restore([address])


def _names(device: Device) -> dict[str, Any]:
    names = {name: getattr(vfiotool, name) for name in dir(vfiotool)}
    return names | {"__name__": "__main__", "vfiotool": vfiotool, "dev": device}


def _tell_of_request(device: Device) -> None:
    click.echo(
        f"\n{device.name}: the kernel asks for it, because something unbinds or removes it. It is given back "
        "now, and 'dev' is closed.",
        err=True,
    )


def _banner(device: Device, *, is_lent: bool) -> str:
    regions = [f"{region_name(region.index)} ({region.size:#x} bytes)" for region in device.regions]
    kinds = {kind: getattr(device.irqs, kind).count for kind in ("intx", "msi", "msix", "err", "req")}
    irqs = [f"{kind} ({count})" for kind, count in kinds.items() if count]
    return "\n".join(
        (
            f"'dev' is {device.name}, opened by {device.dma.iommu.mode.value}.",
            f"  dev.regions  {', '.join(regions)}",
            f"  dev.irqs     {', '.join(irqs)}",
            "  and          dev.config, dev.dma, dev.features, dev.reset(), dev.bus_master (off until set)",
            f"  beside it    vfiotool, {', '.join(dir(vfiotool))}",
            "For example: bar0 = dev.regions.bar0.map(); hex(bar0.read32(0))",
            f"Ctrl-D ends this{', and restores the device' if is_lent else ''}.",
        )
    )
