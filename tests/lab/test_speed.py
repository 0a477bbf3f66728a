"""How long looking takes: beside a bare start of Python and the peers, and while an unbind is blocked."""

from __future__ import annotations

import operator
import os
import statistics
import sys
from collections.abc import Mapping, Sequence

import pytest

from tests.support.device_holder import held
from tests.support.guest import (
    EDU,
    KERNEL,
    MACHINE,
    PROGRAM,
    RELEASE,
    await_,
    command,
    done,
    driver,
    listing,
    path,
    prompt_looks,
    seconds,
)

pytestmark = [pytest.mark.needs_guest, pytest.mark.full]

MOST_STARTS_OF_PYTHON = 3
SETS = 3
"""A busy machine slows what does more by more: what is really slow, is so each time."""

LIST = "vfiotool list --json"
START = "python3 -c pass"
_COMMANDS = {
    START: ((sys.executable, "-c", "pass"), 7),
    LIST: ((PROGRAM, "list", "--json"), 7),
    "lspci -nnk": (("lspci", "-nnk"), 3),
    "driverctl list-devices": (("driverctl", "list-devices"), 1),
    "dpdk-devbind.py -s": (("dpdk-devbind.py", "-s"), 1),
}


@pytest.mark.skipif((KERNEL, MACHINE) != ("6.12", "default"), reason="measured on one kernel only")
def test_a_listing_takes_three_starts_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    samples = measured(_COMMANDS)
    took = {name: min(values) for name, values in samples.items()}
    # Another guest runs beside this one, so a command is held against the start of Python just before it.
    starts = {
        name: statistics.median(map(operator.truediv, values, samples[START]))
        for name, values in samples.items()
    }
    for _ in range(SETS - 1):
        if starts[LIST] > MOST_STARTS_OF_PYTHON:
            again = measured({name: _COMMANDS[name] for name in (START, LIST)})
            starts[LIST] = statistics.median(map(operator.truediv, again[LIST], again[START]))
    with capsys.disabled():
        print()
        for name, value in took.items():
            print(f"{name:24} {value:6.2f} s {starts[name]:6.1f} starts of Python")
    assert starts[LIST] <= MOST_STARTS_OF_PYTHON
    assert took[LIST] < min(took["driverctl list-devices"], took["dpdk-devbind.py -s"])


def measured(commands: Mapping[str, tuple[Sequence[str], int]]) -> dict[str, list[float]]:
    """Run commands in turns, each as often as it says; return the seconds that each run took."""
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(max(runs for _, runs in commands.values())):
        for name, (argv, runs) in commands.items():
            if turn < runs:
                samples[name].append(seconds(*argv))
    return samples


@pytest.mark.skipif(MACHINE != "default", reason="measured on one machine only")
def test_looking_does_not_wait_for_a_blocked_unbind() -> None:
    """Up to 6.1 the kernel locks the device's ``driver_override`` meanwhile."""
    before = listing()
    done("bind", EDU)
    with held(EDU) as pid:
        blocked = command(PROGRAM, "unbind", EDU, "--timeout", "1", "--allow-held")
        assert blocked.status == 5, blocked
        assert f"pid {pid} " in blocked.stderr
        every, _, shown = prompt_looks(("list",), ("groups",), ("show", EDU))
    await_("the unbind is done", lambda: not listing()[EDU]["blocked"])
    done("restore", EDU)
    waiting = {one["address"]: one for one in every.document["devices"]}[EDU]
    assert (waiting["driver"], waiting["blocked"]) == (None, True)
    assert ("driver_override" in waiting["unavailable"]) == (RELEASE <= (6, 1))
    assert all(waiting[field] is None for field in waiting["unavailable"])
    assert shown.document["device"] == waiting
    assert not os.path.exists(path(EDU, "driver"))
    assert driver(EDU) is None
    assert listing().keys() == before.keys()
