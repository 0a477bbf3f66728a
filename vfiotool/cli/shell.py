"""The verb that opens a device in a Python prompt, or in a script from stdin."""

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
from vfiotool.cli.parameters import iommu_option, region_name, vf_token_option
from vfiotool.cli.prompt import compile_script, run_prompt, run_script
from vfiotool.cli.settings import Settings
from vfiotool.cli.signals import exit_on_signals, signals_ignored
from vfiotool.errors import VfioToolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import uuid

    from vfiotool.vfio.device import Device


@click.command("shell")
@click.argument("selector", metavar="ADDRESS", shell_complete=complete_endpoint)
@iommu_option
@vf_token_option
@click.option("--bind", is_flag=True, help="Bind the device to vfio-pci first, and restore it at the end.")
@timeout_option
@allow_options
@click.pass_obj
def shell(
    settings: Settings,
    /,
    selector: str,
    mode: str,
    vf_token: uuid.UUID | None,
    bind: bool,
    timeout: float,
    allowed: tuple[str, ...],
) -> int:
    """Open a device on a VFIO driver as 'dev' in a Python prompt.

    If stdin is not a terminal, run it as a Python script. At the end the device is closed and, with --bind,
    restored.
    """
    if allowed and not bind:
        raise click.UsageError("--allow-… needs --bind")
    address = select_live(settings, selector)
    script = _read_script()
    exit_on_signals()
    restore = bind and not is_on_vfio(settings.tree, address)
    with contextlib.ExitStack() as stack:
        if restore:
            binding = Binding(state_dir=settings.state_dir, allowed=allowed, timeout=timeout)
            stack.enter_context(_bound(binding, address))
        device = stack.enter_context(open_selected(settings, address, mode, vf_token))
        device.on_request = _print_request
        names = _names(device)  # outlives the device: no object of the user is freed while the device is open
        if script is not None:
            return run_script(script, names)
        run_prompt(names, _banner(device, restore=restore))
        return 0


def _read_script() -> CodeType | None:
    """Return the script on stdin, or ``None`` if stdin is a terminal."""
    if sys.stdin is None:
        raise click.UsageError("stdin is closed: it must be a terminal or have a script")
    return None if sys.stdin.isatty() else compile_script(sys.stdin.buffer.read())


@contextlib.contextmanager
def _bound(binding: Binding, address: str) -> Iterator[None]:
    """Bind a device to vfio-pci for a ``with`` block, and restore it afterwards."""
    with contextlib.ExitStack() as stack:
        stack.callback(
            _restore, binding, address
        )  # registered first: a signal can arrive as soon as the device is bound
        try:
            plan = binding.bind([address])
        except VfioToolError:
            stack.pop_all()  # the bind undid its changes, or 'recover' has to
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


def _print_request(device: Device) -> None:
    click.echo(
        f"\n{device.name}: the kernel asks to release the device, because it is being unbound or removed. "
        "'dev' is closed now.",
        err=True,
    )


def _banner(device: Device, *, restore: bool) -> str:
    regions = [f"{region_name(region.index)} ({region.size:#x} bytes)" for region in device.regions]
    kinds = {kind: getattr(device.irqs, kind).count for kind in ("intx", "msi", "msix", "err", "req")}
    irqs = [f"{kind} ({count})" for kind, count in kinds.items() if count]
    return "\n".join(
        (
            f"'dev' is {device.name}, opened by {device.dma.iommu.mode.value}.",
            f"  dev.regions  {', '.join(regions)}",
            f"  dev.irqs     {', '.join(irqs)}",
            "  and          dev.config, dev.dma, dev.features, dev.reset(), dev.bus_master (off until set)",
            f"  other names  vfiotool, {', '.join(dir(vfiotool))}",
            "Example: bar0 = dev.regions.bar0.map(); hex(bar0.read32(0))",
            f"Ctrl-D closes the device{' and restores it' if restore else ''}.",
        )
    )
