"""The command line: one module a verb, imported only when that verb is used."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from vfiotool.cli.settings import Settings
from vfiotool.errors import GuestLostError, VfioToolError
from vfiotool.host.pending import STATE_DIR

# verb -> (module:attribute, short help). The help stands here so that `vfiotool --help` imports no verb.
VERBS: dict[str, tuple[str, str]] = {
    "list": ("vfiotool.cli.see:list_devices", "List PCI devices."),
    "groups": ("vfiotool.cli.see:list_groups", "List IOMMU groups and what blocks or holds them."),
    "show": ("vfiotool.cli.see:show_device", "Show all about one device."),
    "bind": ("vfiotool.cli.bind:bind", "Hand devices to a driver, vfio-pci by default."),
    "unbind": ("vfiotool.cli.bind:unbind", "Leave devices without a driver."),
    "restore": ("vfiotool.cli.bind:restore", "Bring devices back to what they were."),
    "lab": ("vfiotool.cli.lab:lab", "Run commands on virtual hardware, under a kernel of your choice."),
}


class LazyGroup(click.Group):
    """A group whose verbs are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--sysroot",
    type=click.Path(exists=True, file_okay=False),
    default="/",
    help="Read the /sys and /proc below this folder instead of this machine's.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    default=STATE_DIR,
    show_default=True,
    help="Where the journal is kept.",
)
@click.version_option(package_name="vfiotool", message="%(prog)s %(version)s")
@click.pass_obj
def cli(settings: Settings, debug: bool, sysroot: str, state_dir: str) -> None:
    """See, bind, drive and prove PCI devices through VFIO."""
    settings.debug, settings.sysroot, settings.state_dir = debug, sysroot, state_dir


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its status; the console script's entry point."""
    settings = Settings()
    try:
        status = run(args, settings)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left; let nothing complain about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def run(args: list[str] | None, settings: Settings) -> int:
    """Run a command line and return its exit status, errors turned into lines on stderr."""
    try:
        result: Any = cli.main(args, prog_name="vfiotool", standalone_mode=False, obj=settings)
    except click.exceptions.Abort:  # click's name for Ctrl-C
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VfioToolError as error:
        if settings.debug:
            traceback.print_exc()
        report(error)
        return error.exit_status
    return result if isinstance(result, int) else 0


def report(error: VfioToolError) -> None:
    """Print an error as its ``error:`` line and, where it has one, its ``hint:`` line."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    if isinstance(error, GuestLostError) and error.console:
        click.echo(error.console, err=True)
