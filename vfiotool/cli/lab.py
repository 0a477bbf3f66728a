"""``vfiotool lab``: run commands on virtual hardware."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from vfiotool.cli.settings import json_option
from vfiotool.cli.signals import exit_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.progress import Progress

    from vfiotool.lab.guest import Times

_KERNEL = click.option("--kernel", "-k", default="host", show_default=True, help="A name from 'lab kernels'.")
_MACHINE = click.option(
    "--machine", "-m", default="default", show_default=True, help="A name from 'lab machines'."
)
_MEMORY = click.option("--memory", default="2G", show_default=True, help="The guest's memory.")
_CPUS = click.option(
    "--cpus", type=click.IntRange(1, 64), default=2, show_default=True, help="The guest's processors."
)
_FILES = click.option(
    "--files",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Lay the files below DIR over the guest's root before it starts, as root's own.",
)
_TIMES = click.option("--times", is_flag=True, help="Say on stderr what the start was made of.")


@click.group()
def lab() -> None:
    """Run commands on virtual hardware, under a kernel of your choice.

    The guest sees this machine's whole root file system, copy on write: nothing it does reaches the host.
    """


@lab.command(context_settings={"allow_interspersed_args": False})
@_KERNEL
@_MACHINE
@_MEMORY
@_CPUS
@_FILES
@click.option("--timeout", type=float, metavar="SECONDS", help="End a command that runs longer.")
@_TIMES
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    kernel: str,
    machine: str,
    memory: str,
    cpus: int,
    files: str | None,
    timeout: float | None,
    times: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND as root in a guest; its exit status is the command's, 125 where the guest is lost.

    On a terminal the command has one too, and Ctrl-C goes to it; Ctrl-] three times ends the guest.
    """
    return start(kernel, machine, memory, cpus, files, timeout, times, command)


@lab.command()
@_KERNEL
@_MACHINE
@_MEMORY
@_CPUS
@_FILES
@_TIMES
def shell(kernel: str, machine: str, memory: str, cpus: int, files: str | None, times: bool) -> int:
    """Open a shell in a guest."""
    command = (os.environ.get("SHELL", "/bin/sh"),)
    return start(kernel, machine, memory, cpus, files, None, times, command)


@lab.command()
@click.option("--refresh", is_flag=True, help="Fetch the newest of those that are in the cache.")
@json_option
def kernels(refresh: bool, as_json: bool) -> None:
    """List the kernels by name, and which are in the cache."""
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
        print_table(("KERNEL", "RELEASE", "STATE", "FROM"), rows)


@lab.command()
@json_option
def machines(as_json: bool) -> None:
    """List the machines, and the devices that all of them have."""
    from vfiotool.lab import machines, qemu
    from vfiotool.render.documents import write_document

    devices = machines.devices(qemu.models())
    if as_json:
        shown = [{"name": one.name, "what": one.what} for one in machines.MACHINES.values()]
        fields = ("address", "ids", "what")
        listed = [{field: getattr(device, field) for field in fields} for device in devices]
        write_document("lab.machines", {"machines": shown, "devices": listed})
    else:
        print_table(("MACHINE", "IOMMU"), [(m.name, m.what) for m in machines.MACHINES.values()])
        print_table(("ADDRESS", "ID", "DEVICE"), [(d.address, d.ids, d.what) for d in devices])


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a plain table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def start(
    kernel: str,
    machine: str,
    memory: str,
    cpus: int,
    files: str | None,
    timeout: float | None,
    show_times: bool,
    command: tuple[str, ...],
) -> int:
    """Get the kernel, start the guest and run the command in it."""
    from vfiotool.lab import guest, kernels, machines, qemu

    topology = machines.get(machine)
    with FetchDisplay() as display:
        found = kernels.get(kernel, progress=display)
        begun = time.monotonic()
        accelerator = qemu.accelerator(found)
    config = guest.GuestConfig(command, found, topology, accelerator, memory, cpus, timeout, files)
    times = guest.Times(probed=time.monotonic() - begun)
    exit_on_signals()
    try:
        return guest.run(config, times)
    finally:
        if show_times:
            print_times(times)


class FetchDisplay:
    """What is being fetched, on stderr: a progress bar on a terminal, else a line for each step."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._last = ""

    def __enter__(self) -> FetchDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, description: str, fraction: float | None) -> None:
        """Show what is being done now, and which part of it is done, if that is known."""
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


def print_times(times: Times) -> None:
    """Print what the way to the command was made of, in seconds, on stderr."""
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
