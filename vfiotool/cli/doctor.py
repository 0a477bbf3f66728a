"""The verb that says whether this machine is ready, and what to do where it is not."""

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
    """Check whether this machine is ready for VFIO, and say what to do where it is not.

    Exits with 1 where a check fails.
    """
    checks = examine(settings.tree, state_dir=settings.state_dir)
    if as_json:
        write_document("doctor", {"checks": checks})
    else:
        print_checks(checks)
    return int(any(check.ok is False for check in checks))
