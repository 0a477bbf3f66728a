"""What watching costs: cycles of a stress run a second, beside the same operations in a bare loop."""

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
from vfiotool.stress.action import Action
from vfiotool.stress.deeds.life_cycle import operation_of
from vfiotool.stress.engine import Told, run
from vfiotool.stress.group_actor import GroupActor
from vfiotool.stress.order import Order, find_units

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


def watched(folder: str) -> tuple[float, list[Action]]:
    """Run stress with all its monitors; return its cycles a second, and the operations that it did."""
    report = f"{folder}/report"
    order = Order(
        units=find_units(Tree(), [DEVICE], folder),
        workloads=WORKLOADS,
        seed=1,
        report=report,
        state_dir=folder,
        reproduce="",
        cycles=CYCLES,
    )
    found = run(order, Quiet(), Told())
    if found.reasons:
        raise SystemExit(f"the run failed: {'; '.join(found.reasons)}")
    with open(f"{report}/trace.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file][1:]
    took = lines[-1]["at"] + lines[-1]["us"] / 1e6 - lines[0]["at"]
    return found.cycles / took, [Action(line["operation"], line["arguments"]) for line in lines]


def bare(actions: list[Action], host: str, state_dir: str) -> float:
    """Do the same operations, and nothing else; return the cycles a second."""
    group = find_group(Tree(), DEVICE)
    with (
        bound(DEVICE, state_dir=state_dir),
        contextlib.closing(GroupActor(group or 0, [DEVICE], {DEVICE: host})) as actor,
    ):
        operations = [operation_of(action) for action in actions]
        begun = time.monotonic()
        for operation in operations:
            actor.do(operation)
        return CYCLES / (time.monotonic() - begun)


def main() -> int:
    """Print both and their ratio; 1 where it is below the goal."""
    host = os.path.basename(os.readlink(f"{device_path(DEVICE)}/driver"))
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            rate, actions = watched(folder)
            rounds.append((rate, bare(actions, host, folder)))
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    table = Table("cycles a second", "watched", "bare", "ratio", "goal", box=None, pad_edge=False)
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    name = f"{','.join(WORKLOADS)} on {DEVICE}"
    table.add_row(name, f"{ours:.1f}", f"{theirs:.1f}", f"{ratio:.3f}", f"at least {GOAL}")
    Console(width=120).print(table)
    return int(ratio < GOAL)
