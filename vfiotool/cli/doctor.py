"""The verb that checks if this machine is ready for VFIO, and prints remedies."""

from __future__ import annotations

import click

from vfiotool.cli.settings import Settings, json_option
from vfiotool.host.doctor import examine
from vfiotool.render.checks import print_checks
from vfiotool.render.documents import write_document


@click.command("doctor")
@json_option
@click.pass_obj
def doctor(settings: Settings, /, as_json: bool) -> int:
    """Check if this machine is ready for VFIO, and print a remedy for each failed check.

    Exits with 1 if a check fails.
    """
    checks = examine(settings.tree, state_dir=settings.state_dir)
    if as_json:
        write_document("doctor", {"checks": checks})
    else:
        print_checks(checks)
    return int(any(check.ok is False for check in checks))
