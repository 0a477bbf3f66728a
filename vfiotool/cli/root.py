"""The click command that all verbs hang from, and click's own errors made ours."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from vfiotool.cli.settings import Settings
from vfiotool.errors import VfioToolError
from vfiotool.host.pending_unbinds import STATE_DIR

# verb -> (module of this package:attribute, short help)
# The short help is here, so that `vfiotool --help` imports no verb.
VERBS: dict[str, tuple[str, str]] = {
    "list": ("reading_commands:list_devices", "List PCI devices."),
    "groups": ("reading_commands:list_groups", "List IOMMU groups and what blocks or holds them."),
    "show": ("reading_commands:show_device", "Show all about one device."),
    "bind": ("bind:bind", "Hand devices to a driver, vfio-pci by default."),
    "unbind": ("bind:unbind", "Leave devices without a driver."),
    "restore": ("bind:restore", "Bring devices back to what they were."),
    "recover": ("bind:recover", "Put right what a killed vfiotool left."),
    "sriov": ("sriov:sriov", "Make or remove a PF's VFs, on vfio-pci if you like."),
    "persist": ("persist:persist", "Have devices on a VFIO driver over reboots."),
    "watch": ("watch:watch", "Show what the kernel does with devices, as it happens."),
    "stress": ("stress:stress", "Prove a kernel by stress, against a model of what it must do."),
    "peek": ("registers:peek", "Read registers of a device on a VFIO driver."),
    "poke": ("registers:poke", "Write a register of a device on a VFIO driver."),
    "config": ("config:config", "Decode a device's configuration space."),
    "shell": ("shell:shell", "Drive a device from a Python prompt or script."),
    "doctor": ("doctor:doctor", "Check whether this machine is ready, and say what to do."),
    "capture": ("capture:capture", "Capture this machine into a file, for --sysroot."),
    "lab": ("lab:lab", "Run commands on virtual hardware, under a kernel of your choice."),
}


class CommandLineError(VfioToolError):
    """The words of the command line do not fit the verb."""

    exit_status = 2


class LazyGroup(click.Group):
    """A group whose verbs are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"vfiotool.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--sysroot",
    type=click.Path(exists=True),
    default="/",
    help="Look at another machine: a file that 'capture' made, or a folder with /sys and /proc in it.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, resolve_path=True, readable=False),  # it is root's alone
    default=STATE_DIR,
    show_default=True,
    help="Where the journal is kept.",
)
@click.version_option(package_name="vfiotool", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, debug: bool, sysroot: str, state_dir: str) -> None:
    """See, bind, drive and prove PCI devices through VFIO."""
    context.obj = Settings(sysroot=_folder(context, sysroot), state_dir=state_dir)


def _folder(context: click.Context, sysroot: str) -> str:
    """Return the folder of a machine; that of a capture is unpacked for as long as the verb runs."""
    if os.path.isdir(sysroot):
        return sysroot
    from vfiotool.host.capture.captured_tree import unpacked

    return context.with_resource(unpacked(sysroot))


def invoke(args: list[str]) -> int:
    """Run a command line and return its exit status.

    Raises:
        VfioToolError: it failed; its ``exit_status`` is the one to exit with.
        KeyboardInterrupt: the user ended it.
    """
    try:
        result: Any = cli.main(args, prog_name="vfiotool", standalone_mode=False)
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "vfiotool"
        message = error.format_message().rstrip(".")
        raise CommandLineError(message[:1].lower() + message[1:], hint=f"see '{path} --help'") from None
    return result if isinstance(result, int) else 0
