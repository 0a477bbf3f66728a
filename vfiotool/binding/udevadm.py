"""Make udevd reload its rules, or process a device again; each function returns when udevd is done."""

from __future__ import annotations

import os
import shutil
import subprocess

from vfiotool.errors import UnsupportedError, VfioToolError

_SECONDS = 60.0
_ASKS = 3
"""How often udevd is asked to reload its rules.

udevd accepts messages from root only, and asks the kernel for the senders of messages only after it has
accepted the connection. A message sent in between has no known sender: udevd ignores it ("Invalid sender uid
65534"), and udevadm still ends with success (seen with systemd 252, once in 20 times on a busy machine with
one processor).
"""


def reload() -> None:
    """Make udevd use the rules as they are now; by itself it checks them every few seconds only.

    Raises:
        UnsupportedError: no udevd runs.
    """
    try:
        for _ in range(_ASKS):
            _run("control", "--reload")
    except VfioToolError as error:
        raise UnsupportedError(
            f"no udevd runs here, and without udevd no udev rule is in force ({error})",
            hint="start systemd-udevd",
        ) from error


def announce_change(device: str) -> None:
    """Make udevd process a "change" uevent of the device whose sysfs folder is ``device``.

    Raises:
        VfioToolError: udevd could not, or not in time.
    """
    _run("trigger", "--settle", "--action=change", device)


def settle(seconds: int) -> None:
    """Wait until udevd has processed all events that it has, for at most ``seconds``.

    Raises:
        VfioToolError: udevd did not do so in time, or does not run.
    """
    _run("settle", f"--timeout={seconds}")


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
            hint="check that systemd-udevd runs",
        )
