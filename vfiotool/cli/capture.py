"""The verb that puts a machine into one file, to be looked at elsewhere."""

from __future__ import annotations

import click

from vfiotool.cli.settings import Settings
from vfiotool.host.capture.recording import capture as capture_machine
from vfiotool.host.capture.recording import write_capture


@click.command("capture")
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_obj
def capture(settings: Settings, /, file: str) -> None:
    """Capture this machine into FILE, which must not exist yet.

    'vfiotool --sysroot FILE list', groups, show and doctor look at it, on any machine. It has what these
    verbs read and no more: no serial numbers, MAC addresses, environments or command lines of processes.
    """
    captured = capture_machine(settings.require_live(), state_dir=settings.state_dir)
    archive = captured.archive()
    write_capture(file, archive)
    print(f"{file}: {captured.entries} entries in {len(archive)} bytes")
