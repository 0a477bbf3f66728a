"""The verb that puts a machine into one file, to be looked at elsewhere."""

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

    'vfiotool --sysroot FILE list', groups, show and doctor look at it, on any machine. It has what these
    verbs read and no more: no serial numbers, MAC addresses, environments or command lines of processes.
    """
    captured = capture_machine(settings.require_live(), state_dir=settings.state_dir)
    archive = captured.archive()
    _write(file, archive)
    print(f"{file}: {captured.entries} entries in {len(archive)} bytes")


def _write(path: str, archive: bytes) -> None:
    """Write an archive as a new file that only this user can read: as a whole, or not at all."""
    try:
        create_file(path, [archive], mode=0o600)
    except OSError as error:
        raise VfioToolError(
            f"{path} cannot be written: {error.strerror} ({error.filename})",
            hint="name a file that does not exist yet, in a folder that you can write",
        ) from error
