"""A trace line and a report, as the tests of a run's results need them."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator
from typing import Any

from vfiotool.stress.record import Call, Expectation, Outcome, Record
from vfiotool.stress.results.report import (
    Measured,
    Report,
    utc_text,
)

ADDRESS = "0000:01:00.0"
HEADER: dict[str, Any] = {
    "kernel": "6.12.48",
    "era": "cdev",
    "devices": [ADDRESS],
    "seed": 7,
    "workloads": ["group"],
    "units": [{"group": 3, "members": [ADDRESS], "hosts": {ADDRESS: "e1000e"}}],
    "started": "2026-01-01T00:00:00Z",
}
RECORD = Record(
    at=12.5,
    took_us=80.25,
    unit=0,
    workload="group",
    cycle=4,
    call=Call("SET_CONTAINER", {"fd": 3, "node": "/dev/vfio/3"}),
    expected=Expectation(),
    outcome=Outcome(errno.EPERM),
    released="unbind",
)
LINE = RECORD.line().document()

OPERATION = {"count": 4, "errors": {"EBUSY": 1}, "p50_us": 9, "p90_us": 20, "p99_us": 99, "max_us": 100.5}


def report(reasons: tuple[str, ...] = (), **changes: Any) -> Report:
    measured: dict[str, Any] = {
        "udev": {"expected": 1, "received": 1, "missing": [], "duplicated": [], "out_of_order": []},
        "probes": {"vfio_group_release": 3},
        "kernel_log": [],
        "taint": {"before": 0, "after": 0},
        "resources": {"before": {"fds": 3}, "after": {"fds": 3}, "leaked": []},
    }
    measured |= {name: changes.pop(name) for name in measured if name in changes}
    found: dict[str, Any] = {
        "kernel": "6.12.48",
        "era": "cdev",
        "devices": [ADDRESS],
        "workloads": ["group", "dma"],
        "seed": 7,
        "started": utc_text(0),
        "seconds": 1.23456,
        "cycles": 5,
        "operations": {"unbind": OPERATION},
        "unexpected": [],
        "unexpected_count": 0,
        "restored": True,
        "interrupted": None,
        "reasons": reasons,
        "reproduce": "vfiotool stress group dma --seed 7",
    }
    return Report(**{**found, "measured": Measured(**measured), **changes})


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of files, as the kernel does it: a short write, then EFBIG.

    For no longer than it must: pytest writes to a file, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
