"""``vfiotool lab``: run commands on virtual hardware."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from vfiotool.cli.option_groups import grouped
from vfiotool.cli.settings import json_option
from vfiotool.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from rich.progress import Progress

    from vfiotool.lab.guest import Times


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """How a guest is started; ``files`` is a directory, ``times`` asks to print the start-up times."""

    kernel: str
    machine: str
    memory: str
    cpus: int
    files: str | None
    times: bool


_guest_options = grouped(
    "options",
    GuestOptions,
    [
        click.option("--kernel", "-k", default="host", show_default=True, help="A name from 'lab kernels'."),
        click.option(
            "--machine",
            "-m",
            default="default",
            show_default=True,
            help="A name from 'lab machines'.",
        ),
        click.option("--memory", default="2G", show_default=True, help="Memory of the guest (QEMU's -m)."),
        click.option(
            "--cpus",
            type=click.IntRange(1, 64),
            default=2,
            show_default=True,
            help="Number of the guest's processors.",
        ),
        click.option(
            "--files",
            type=click.Path(exists=True, file_okay=False),
            metavar="DIR",
            help="Copy the files below DIR over the guest's root before it starts, owned by root.",
        ),
        click.option("--times", is_flag=True, help="Print the duration of each start-up step to stderr."),
    ],
)


@click.group()
def lab() -> None:
    """Run commands on virtual hardware, on a chosen kernel.

    The guest has this machine's whole root file system, copy on write: its changes do not reach the host.
    """


@lab.command(context_settings={"allow_interspersed_args": False})
@_guest_options
@click.option("--timeout", type=float, metavar="S", help="End the command after S seconds; by default never.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(options: GuestOptions, timeout: float | None, command: tuple[str, ...]) -> int:
    """Run COMMAND as root in a guest. The exit status is the command's, or 125 if the guest is lost.

    On a terminal, COMMAND has a terminal too, and Ctrl-C goes to COMMAND; Ctrl-] three times ends the guest.
    """
    return _start(options, command, timeout)


@lab.command()
@_guest_options
def shell(options: GuestOptions) -> int:
    """Open a shell as root in a guest."""
    return _start(options, (os.environ.get("SHELL", "/bin/sh"),))


@lab.command()
@click.option("--refresh", is_flag=True, help="Fetch the newest version of each cached kernel.")
@json_option
def kernels(refresh: bool, as_json: bool) -> None:
    """List the kernels, and show which are in the cache."""
    from vfiotool.lab import kernels
    from vfiotool.render.documents import write_document

    known = kernels.available()
    if refresh:
        with FetchDisplay() as display:
            for one in known:
                if one.cached:
                    kernels.get(one.name, progress=display, refresh=True)
        known = kernels.available()
    if as_json:
        write_document("lab.kernels", {"kernels": known})
    else:
        absent = {kernels.BUILT: "not built"}
        rows = [
            (
                one.name,
                one.release or "-",
                "cached" if one.cached else absent.get(one.name, "on first use"),
                one.suite,
            )
            for one in known
        ]
        from vfiotool.render.terminal import print_table

        print_table(("KERNEL", "RELEASE", "STATE", "FROM"), rows)


@lab.command()
@json_option
def machines(as_json: bool) -> None:
    """List the machines, and the devices that every machine has."""
    from vfiotool.lab import machines, qemu
    from vfiotool.render.documents import write_document

    devices = machines.devices(qemu.models())
    if as_json:
        shown = [{"name": one.name, "what": one.what} for one in machines.MACHINES.values()]
        fields = ("address", "ids", "what")
        listed = [{field: getattr(device, field) for field in fields} for device in devices]
        write_document("lab.machines", {"machines": shown, "devices": listed})
    else:
        from vfiotool.render.terminal import print_table

        print_table(("MACHINE", "IOMMU"), [(m.name, m.what) for m in machines.MACHINES.values()])
        print_table(("ADDRESS", "ID", "DEVICE"), [(d.address, d.ids, d.what) for d in devices])


def _start(options: GuestOptions, command: tuple[str, ...], timeout: float | None = None) -> int:
    """Get the kernel, start a guest, run the command in it, and return the command's exit status."""
    from vfiotool.lab import guest, kernels, machines, qemu

    topology = machines.get(options.machine)
    with FetchDisplay() as display:
        found = kernels.get(options.kernel, progress=display)
        begun = time.monotonic()
        accelerator = qemu.accelerator(found)
    config = guest.GuestConfig(
        argv=command,
        kernel=found,
        machine=topology,
        accelerator=accelerator,
        memory=options.memory,
        cpus=options.cpus,
        timeout=timeout,
        files=options.files,
    )
    times = guest.Times(probed=time.monotonic() - begun)
    exit_on_signals()
    try:
        return guest.run(config, times)
    finally:
        if options.times:
            _print_times(times)


class FetchDisplay:
    """Shows a fetch on stderr: a progress bar on a terminal, else a line for each step."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._last = ""

    def __enter__(self) -> FetchDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, description: str, fraction: float | None) -> None:
        """Show the current step, and its completed share (0 to 1), or ``None`` if the share is unknown."""
        if sys.stderr.isatty():
            self._draw(description, fraction)
        elif description != self._last:
            click.echo(description, err=True)
        self._last = description

    def _draw(self, description: str, fraction: float | None) -> None:
        from rich.console import Console
        from rich.progress import Progress

        if self._bar is None:
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(description)
        (task,) = self._bar.task_ids
        if fraction is None:
            self._bar.reset(task, total=None, description=description)
        else:
            self._bar.update(task, description=description, total=1.0, completed=fraction)


def _print_times(times: Times) -> None:
    """Print the duration of each start-up step of a guest to stderr, in seconds."""
    if times.phases is None:
        return
    marks = times.phases
    firmware = times.ready - marks["devices"]
    steps = {
        "accelerator": times.probed,
        "initramfs": times.prepared,
        "firmware": firmware,
        "kernel": marks["kernel"],
        "root": marks["root"] - marks["kernel"],
        "agent": marks["agent"] - marks["root"],
        "devices": marks["devices"] - marks["agent"],
    }
    for name, seconds in steps.items():
        click.echo(f"{name:12} {seconds:6.2f} s", err=True)
    click.echo(f"{'total':12} {sum(steps.values()):6.2f} s", err=True)
