"""The root command, which imports a verb on first use, and the conversion of click's errors."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from vfiotool.cli.settings import Settings
from vfiotool.cli.signals import resend_lost_signals
from vfiotool.errors import VfioToolError
from vfiotool.host.pending_unbinds import STATE_DIR

# verb -> (module of this package:attribute, short help)
# The short help is here, so that `vfiotool --help` imports no verb.
VERBS: dict[str, tuple[str, str]] = {
    "list": ("reading_commands:list_devices", "List PCI devices."),
    "groups": ("reading_commands:list_groups", "List IOMMU groups with their blockers and holders."),
    "show": ("reading_commands:show_device", "Show all details of a device."),
    "bind": ("bind:bind", "Bind devices to a driver, by default vfio-pci."),
    "unbind": ("bind:unbind", "Unbind devices from their drivers."),
    "restore": ("bind:restore", "Restore devices to their former driver and state."),
    "recover": ("bind:recover", "Finish or undo the changes of a killed vfiotool."),
    "sriov": ("sriov:sriov", "Create or remove the VFs of a PF."),
    "persist": ("persist:persist", "Bind devices to a VFIO driver at each boot."),
    "watch": ("watch:watch", "Show the kernel's events for devices as they occur."),
    "stress": ("stress:stress", "Stress a kernel's VFIO and check it against a model."),
    "peek": ("registers:peek", "Read registers of a device on a VFIO driver."),
    "poke": ("registers:poke", "Write a register of a device on a VFIO driver."),
    "config": ("config:config", "Decode a device's configuration space."),
    "shell": ("shell:shell", "Open a device in a Python prompt or script."),
    "doctor": ("doctor:doctor", "Check if this machine is ready for VFIO."),
    "capture": ("capture:capture", "Capture this machine into a file for --sysroot."),
    "lab": ("lab:lab", "Run commands on virtual hardware, on a chosen kernel."),
}

_ADDRESS = (
    "ADDRESS selects devices: a PCI address (0000:03:00.0, or 03:00.0), a glob ('0000:03:*'), vendor:device "
    "(8086:10d3), a class name, a network interface, a block or NVMe device, or an IOMMU group (group:7)."
)


class CommandLineError(VfioToolError):
    """The command line has an unknown option, a missing argument or an invalid value."""

    exit_status = 2


class LazyGroup(click.Group):
    """A click group that imports the module of a verb on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"vfiotool.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - VERBS is a constant of this module
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_ADDRESS)
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
@click.option(
    "--sysroot",
    type=click.Path(exists=True),
    default="/",
    help="Read another machine: a file from 'vfiotool capture', or a folder or tar of its /sys and /proc.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, resolve_path=True, readable=False),  # only root can read it
    default=STATE_DIR,
    show_default=True,
    help="Directory of the journal and the other recorded state.",
)
@click.version_option(package_name="vfiotool", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, debug: bool, sysroot: str, state_dir: str) -> None:
    """List, bind, drive and stress PCI devices through VFIO."""
    context.obj = Settings(sysroot=_folder(context, sysroot), state_dir=state_dir)


def _folder(context: click.Context, sysroot: str) -> str:
    """Return the directory of the machine. An archive is unpacked until the verb ends."""
    if os.path.isdir(sysroot):
        return sysroot
    from vfiotool.host.capture.archives import unpacked
    from vfiotool.render.errors import print_note

    return context.with_resource(unpacked(sysroot, note=print_note))


def invoke(args: list[str]) -> int:
    """Run a command line and return its exit status.

    Raises:
        VfioToolError: the verb failed. Exit with the error's ``exit_status``.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    resend_lost_signals()
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
