"""The cost of the monitors: cycles per second of a stress run, beside the same operations in a bare loop."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from vfiotool.binding.operations import bound
from vfiotool.host.attributes import device_path, find_group
from vfiotool.host.tree import Tree
from vfiotool.stress.config import RunConfig
from vfiotool.stress.group.client import GroupClient
from vfiotool.stress.groups import find_groups
from vfiotool.stress.operations.lifecycle import operation_of
from vfiotool.stress.record import Call
from vfiotool.stress.runner import StopRequest, run

DEVICE = "0000:00:12.0"
WORKLOADS = ("bind",)
CYCLES = 20
ROUNDS = 5
GOAL = 0.9


class Quiet:
    """A screen that shows nothing."""

    due = False

    def show(self, **fields: Any) -> None:
        """Never called."""


def watched(folder: str) -> tuple[float, list[Call]]:
    """Run stress with all its monitors; return its cycles a second, and the operations that it did."""
    report = f"{folder}/report"
    order = RunConfig(
        groups=find_groups(Tree(), [DEVICE], folder),
        workloads=WORKLOADS,
        seed=1,
        report=report,
        state_dir=folder,
        reproduce="",
        cycles=CYCLES,
    )
    found = run(order, Quiet(), StopRequest())
    if found.reasons:
        raise SystemExit(f"the run failed: {'; '.join(found.reasons)}")
    with open(f"{report}/trace.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file][1:]
    took = lines[-1]["at"] + lines[-1]["us"] / 1e6 - lines[0]["at"]
    return found.cycles / took, [Call(line["operation"], line["arguments"]) for line in lines]


def bare(calls: list[Call], host: str, state_dir: str) -> float:
    """Do the same operations, and nothing else; return the cycles a second."""
    group = find_group(Tree(), DEVICE)
    with (
        bound(DEVICE, state_dir=state_dir),
        contextlib.closing(GroupClient(group or 0, [DEVICE], {DEVICE: host})) as client,
    ):
        operations = [operation_of(call) for call in calls]
        begun = time.monotonic()
        for operation in operations:
            client.do(operation)
        return CYCLES / (time.monotonic() - begun)


def main() -> int:
    """Print both and their ratio; 1 where it is below the goal."""
    host = os.path.basename(os.readlink(f"{device_path(DEVICE)}/driver"))
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            rate, calls = watched(folder)
            rounds.append((rate, bare(calls, host, folder)))
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    table = Table("cycles a second", "watched", "bare", "ratio", "goal", box=None, pad_edge=False)
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    name = f"{','.join(WORKLOADS)} on {DEVICE}"
    table.add_row(name, f"{ours:.1f}", f"{theirs:.1f}", f"{ratio:.3f}", f"at least {GOAL}")
    Console(width=120).print(table)
    return int(ratio < GOAL)
