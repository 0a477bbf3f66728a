"""The verb that captures a machine into a file, which vfiotool can read on another machine."""

from __future__ import annotations

import click

from vfiotool.cli.settings import Settings
from vfiotool.errors import VfioToolError
from vfiotool.host.capture.recording import capture as capture_machine
from vfiotool.util.files import create_file


@click.command("capture")
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_obj
def capture(settings: Settings, /, file: str) -> None:
    """Capture this machine into FILE, which must not exist yet.

    On any machine, 'vfiotool --sysroot FILE' with the verb list, groups, show or doctor reads FILE. FILE has
    only the data that these verbs read: no serial numbers, no MAC addresses, and no environments or command
    lines of processes.
    """
    captured = capture_machine(settings.require_live(), state_dir=settings.state_dir)
    archive = captured.archive()
    _write(file, archive)
    print(f"{file}: {captured.entries} entries in {len(archive)} bytes")


def _write(path: str, archive: bytes) -> None:
    """Write an archive to a new file that only this user can read. No part of it remains on an error."""
    try:
        create_file(path, [archive], mode=0o600)
    except OSError as error:
        raise VfioToolError(
            f"{path} cannot be written: {error.strerror} ({error.filename})",
            hint="name a file that does not exist yet, in a folder that you can write",
        ) from error
