"""Have udevd read its rules again, and handle a device again; each returns when it is done."""

from __future__ import annotations

import os
import shutil
import subprocess

from vfiotool.errors import UnsupportedError, VfioToolError

_SECONDS = 60.0
_ASKS = 3
"""How often udevd is asked to read its rules again.

It takes what root sends, and asks the kernel to be told who sends only once it has accepted the connection.
Of what is sent between the two it knows no sender: it ignores that ("Invalid sender uid 65534"), and udevadm
ends with success (seen with systemd 252, once in 20 times on a busy machine with one processor).
"""


def reload() -> None:
    """Have the rules as they are now in force: by itself udevd looks at them every few seconds only.

    Raises:
        UnsupportedError: no udevd runs.
    """
    try:
        for _ in range(_ASKS):
            _run("control", "--reload")
    except VfioToolError as error:
        raise UnsupportedError(
            f"no udevd runs here, which puts udev's rules into force ({error})",
            hint="start systemd-udevd",
        ) from error


def announce_change(device: str) -> None:
    """Have udevd handle a "change" of a device, by its folder in sysfs.

    Raises:
        VfioToolError: it could not, or not in time.
    """
    _run("trigger", "--settle", "--action=change", device)


def _run(*arguments: str) -> None:
    udevadm = shutil.which("udevadm", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin:/sbin")
    if udevadm is None:
        raise VfioToolError("udevadm is not on this machine", hint="install the package udev")
    try:
        ended = subprocess.run(
            [udevadm, *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise VfioToolError(
            f"'udevadm {' '.join(arguments)}' did not end within {_SECONDS:g} s",
            hint="see 'udevadm monitor', and whether systemd-udevd is stuck",
        ) from None
    if ended.returncode:
        raise VfioToolError(
            f"'udevadm {' '.join(arguments)}' failed: {' '.join(ended.stderr.split())}",
            hint="see whether systemd-udevd runs",
        )
