"""``vfiotool lab``: run commands on virtual hardware."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vfiotool.lab.guest import Times

_KERNEL = click.option("--kernel", "-k", default="host", show_default=True, help="A name from 'lab kernels'.")
_MACHINE = click.option(
    "--machine", "-m", default="default", show_default=True, help="A name from 'lab machines'."
)
_MEMORY = click.option("--memory", default="2G", show_default=True, help="The guest's memory.")
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
@click.option("--timeout", type=float, metavar="SECONDS", help="End a command that runs longer.")
@_TIMES
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    kernel: str, machine: str, memory: str, timeout: float | None, times: bool, command: tuple[str, ...]
) -> int:
    """Run COMMAND as root in a guest; its exit status is the command's, 125 where the guest is lost.

    On a terminal the command has one too, and Ctrl-C goes to it; Ctrl-] three times ends the guest.
    """
    return start(kernel, machine, memory, timeout, times, command)


@lab.command()
@_KERNEL
@_MACHINE
@_MEMORY
@_TIMES
def shell(kernel: str, machine: str, memory: str, times: bool) -> int:
    """Open a shell in a guest."""
    return start(kernel, machine, memory, None, times, (os.environ.get("SHELL", "/bin/sh"),))


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kernels(as_json: bool) -> None:
    """List the kernels by name, and which are in the cache."""
    from vfiotool.lab import kernels
    from vfiotool.render.documents import write_document

    known = kernels.available()
    if as_json:
        write_document("lab.kernels", {"kernels": known})
    else:
        rows = [
            (one.name, one.release or "-", "cached" if one.cached else "on first use", one.suite)
            for one in known
        ]
        print_table(("KERNEL", "RELEASE", "STATE", "FROM"), rows)


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    timeout: float | None,
    show_times: bool,
    command: tuple[str, ...],
) -> int:
    """Get the kernel, start the guest and run the command in it."""
    from vfiotool.lab import guest, kernels, machines, qemu

    topology = machines.get(machine)
    with Notices() as notices:
        found = kernels.get(kernel, progress=notices)
        begun = time.monotonic()
        accelerator = qemu.accelerator(found)
    job = guest.Job(command, found, topology, accelerator, memory, timeout)
    times = guest.Times(probed=time.monotonic() - begun)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    try:
        return guest.run(job, times)
    finally:
        if show_times:
            print_times(times)


def end(number: int, _frame: object) -> NoReturn:
    """Leave in good order: the guest ended, the terminal as it was."""
    raise SystemExit(128 + number)


class Notices:
    """What is being fetched, on stderr: a line that changes on a terminal, else a line for each step."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> Notices:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last and sys.stderr.isatty():
            click.echo("\r\033[K", nl=False, err=True)

    def update(self, description: str, fraction: float | None) -> None:
        """Show what is being done now."""
        if sys.stderr.isatty():
            width = 20
            done = round(width * (fraction or 0))
            shown = "" if fraction is None else f" [{'#' * done}{'.' * (width - done)}] {fraction:.0%}"
            click.echo(f"\r\033[K{description}{shown}", nl=False, err=True)
        elif description != self._last:
            click.echo(description, err=True)
        self._last = description


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
