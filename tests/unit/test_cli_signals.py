"""A signal that ends vfiotool does so in whichever code it arrives."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_SCRIPT = """
import os, sys, time
from vfiotool.cli import run
from vfiotool.cli.signals import exit_on_signals

assert run(["watch", "--help"]) == 0
exit_on_signals()

class Event:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(0)  # the handler runs here

print("running", flush=True)
deadline = time.monotonic() + 60
try:
    Event()
    while time.monotonic() < deadline:
        time.sleep(0.001)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(
    ("number", "status", "output"),
    [(signal.SIGINT, 0, "interrupted"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_a_signal_during_a_destructor_is_not_lost(number: signal.Signals, status: int, output: str) -> None:
    script = _SCRIPT.format(number=int(number))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (status, "")
    assert result.stdout.rpartition("running\n")[2].strip() == output


def test_other_errors_of_a_destructor_are_printed() -> None:
    script = _SCRIPT.replace("os.kill(os.getpid(), {number})", "sys.exit(3)").replace("60", "0")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert "SystemExit: 3" in result.stderr
