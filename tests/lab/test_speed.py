"""How long looking takes: beside a bare start of Python and the peers, and while an unbind is blocked."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

import pytest

from tests.lab.support import (
    EDU,
    KERNEL,
    MACHINE,
    PROGRAM,
    Result,
    await_,
    command,
    done,
    driver,
    group,
    listing,
    output,
    path,
)

pytestmark = pytest.mark.needs_guest

MOST_STARTS_OF_PYTHON = 3
MOST_SECONDS = 2
USUAL_START = 0.2
"""Seconds that a bare start of Python takes in a guest on an idle host; a busy host slows all alike."""

_COMMANDS = {
    "python3 -c pass": ((sys.executable, "-c", "pass"), 7),
    "vfiotool list --json": ((PROGRAM, "list", "--json"), 7),
    "lspci -nnk": (("lspci", "-nnk"), 3),
    "driverctl list-devices": (("driverctl", "list-devices"), 1),
    "dpdk-devbind.py -s": (("dpdk-devbind.py", "-s"), 1),
}
_HOLD = """
import sys
from vfiotool.vfio.session import GroupDevice
with GroupDevice(sys.argv[1], int(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def seconds(*argv: str) -> float:
    begun = time.monotonic()
    output(*argv)
    return time.monotonic() - begun


@pytest.mark.skipif((KERNEL, MACHINE) != ("6.12", "default"), reason="measured on one kernel only")
def test_a_listing_takes_three_starts_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    samples: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for turn in range(max(runs for _, runs in _COMMANDS.values())):
        for name, (argv, runs) in _COMMANDS.items():
            if turn < runs:
                samples[name].append(seconds(*argv))
    took = {name: min(values) for name, values in samples.items()}  # another guest runs beside this one
    start = took["python3 -c pass"]
    with capsys.disabled():
        print()
        for name, value in took.items():
            print(f"{name:24} {value:6.2f} s {value / start:6.1f} starts of Python")
    assert took["vfiotool list --json"] <= MOST_STARTS_OF_PYTHON * start
    assert took["vfiotool list --json"] < min(took["driverctl list-devices"], took["dpdk-devbind.py -s"])


VERBS = [("list",), ("groups",), ("show", EDU)]


@contextlib.contextmanager
def blocked_unbind() -> Iterator[int]:
    """An unbind of edu that waits for a process that holds the device; yield that process's pid."""
    number = group(EDU)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, EDU, str(number)],
        cwd="/",  # what is installed, and not the checkout's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        refused = command(PROGRAM, "unbind", EDU, "--timeout", "1")
        assert refused.status == 5, refused
        assert f"pid {holder.pid} " in refused.stderr
        yield holder.pid
        holder.stdin.close()
        assert holder.wait(30) == 0


@pytest.mark.skipif(
    KERNEL not in ("6.1", "6.12") or MACHINE != "default", reason="two kernels show both ways"
)
def test_looking_does_not_wait_for_a_blocked_unbind() -> None:
    """6.1 locks the device's ``driver_override`` meanwhile, 6.12 does not."""
    before = listing()
    done("bind", EDU)
    with blocked_unbind():
        slowness = max(1, median(seconds(sys.executable, "-c", "pass") for _ in range(3)) / USUAL_START)
        looks = {verb: look(*verb, limit=MOST_SECONDS * slowness) for verb in VERBS}
        waiting = {one["address"]: one for one in looks["list",].document["devices"]}[EDU]
    await_("the unbind is done", lambda: not listing()[EDU]["blocked"])
    done("restore", EDU)
    assert (waiting["driver"], waiting["blocked"]) == (None, True)
    assert ("driver_override" in waiting["unavailable"]) == (KERNEL == "6.1")
    assert all(waiting[field] is None for field in waiting["unavailable"])
    assert looks["show", EDU].document["device"] == waiting
    assert not os.path.exists(path(EDU, "driver"))
    assert driver(EDU) is None
    assert listing().keys() == before.keys()


def look(*verb: str, limit: float) -> Result:
    """Look thrice, as another guest may have the processors once; what really waits, waits each time."""
    took = []
    for _ in range(3):
        begun = time.monotonic()
        result = command(PROGRAM, *verb, "--json")
        took.append(time.monotonic() - begun)
        assert result.status == 0, result
    assert min(took) < limit, (verb, took)
    return result
