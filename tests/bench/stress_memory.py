"""The memory of a long run's processes, by the number of operations."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from vfiotool.host.tree import Tree
from vfiotool.stress.config import RunConfig
from vfiotool.stress.groups import find_groups
from vfiotool.stress.runner import StopRequest, run
from vfiotool.util.tasks import children

DEVICE = "0000:00:10.0"
WORKLOADS = ("dma", "irq", "group")
OPERATIONS = 100_000
SHOWN = 10
SETTLED = 0.2
"""By then all has been done that a run does, so that nothing new is kept from then on."""
SECONDS = 3600
GOAL = 1.02


class Samples:
    """A screen that writes down what the processes take, and tells the run to end."""

    def __init__(self, stop: StopRequest) -> None:
        self.taken: list[tuple[int, int, int]] = []
        self._stop = stop
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Say whether a second has passed."""
        return time.monotonic() >= self._next

    def show(self, **fields: Any) -> None:
        """Write down operations, and the kB of the run and of those that it has started."""
        self._next = time.monotonic() + 1
        operations = int(fields["operations"])
        self.taken.append((operations, resident(os.getpid()), sum(map(resident, children([os.getpid()])))))
        if operations >= OPERATIONS:
            self._stop.by = "enough"


def resident(pid: int) -> int:
    """Return the kB that a process has in memory; 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmRSS:")), 0)
    except OSError:
        return 0


def main() -> int:
    """Print what was taken after each tenth; 1 where it grows once all has been done."""
    stop = StopRequest()
    samples = Samples(stop)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        order = RunConfig(
            groups=find_groups(Tree(), [DEVICE], folder),
            workloads=WORKLOADS,
            seed=1,
            report=f"{folder}/report",
            state_dir=folder,
            reproduce="",
            duration=SECONDS,
        )
        found = run(order, samples, stop)
    if found.reasons:
        raise SystemExit(f"the run failed: {'; '.join(found.reasons)}")
    table = Table("operations", "run kB", "worker and cleanup kB", box=None, pad_edge=False)
    for share in range(1, SHOWN + 1):
        table.add_row(*(f"{number:,}" for number in at(samples, share / SHOWN)))
    first, last = at(samples, SETTLED), samples.taken[-1]
    growth = max(last[1] / first[1], last[2] / first[2])
    console = Console(width=120)
    console.print(table)
    seconds = time.monotonic() - begun
    console.print(
        f"{','.join(WORKLOADS)} on {DEVICE}: {seconds:.0f} s, growth {growth:.3f}, goal below {GOAL}"
    )
    return int(growth > GOAL)


def at(samples: Samples, share: float) -> tuple[int, int, int]:
    """Return what was taken when so much of the run was done."""
    return next(one for one in samples.taken if one[0] >= share * OPERATIONS)
