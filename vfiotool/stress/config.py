"""The configuration of a run: groups, workloads, limits, and whether the kernel may be crashed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vfiotool.errors import RefusedError, UsageError
from vfiotool.host.tree import Tree
from vfiotool.stress.groups import GroupSpec
from vfiotool.stress.record import Call
from vfiotool.stress.workloads import ALL, WORKLOADS

LAB_HOST = "vfiotool-lab"
"""The host name of a lab guest."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The configuration of a run.

    ``cycles`` limits the cycles per workload and group, ``duration`` limits the run, in seconds. ``allowed``
    names the binding rules that are lifted. ``jobs`` is the largest number of worker processes.
    """

    groups: tuple[GroupSpec, ...]
    workloads: tuple[str, ...]
    seed: int
    report: str
    state_dir: str
    reproduce: str
    cycles: int | None = None
    duration: float | None = None
    jobs: int = 1
    allowed: frozenset[str] = frozenset()
    allow_crash: bool = False
    repeated: Mapping[int, Sequence[Sequence[Call]]] = field(default_factory=dict)
    """For a replay: the cycles of each group by its number, in place of the workloads."""

    @property
    def addresses(self) -> list[str]:
        """All devices of the run."""
        return [address for group in self.groups for address in group.members]


def parse_workloads(names: str) -> tuple[str, ...]:
    """Return the workloads of a comma-separated list; ``all`` stands for all workloads.

    Raises:
        UsageError: a name is not a workload.
    """
    chosen = dict.fromkeys(name.strip() for name in names.split(","))
    for name in chosen:
        if name != ALL and name not in WORKLOADS:
            raise UsageError(
                f"there is no workload '{name}'", hint=f"the workloads are {', '.join([*WORKLOADS, ALL])}"
            )
    return tuple(WORKLOADS) if ALL in chosen else tuple(chosen)


def require_lab(tree: Tree) -> None:
    """Refuse to crash the kernel outside a lab guest, or in a guest that would not survive the crash.

    Raises:
        RefusedError: this machine is no lab guest, or the guest would panic before the report.
    """
    if tree.find("/proc/sys/kernel/hostname") != LAB_HOST or "VFIOTOOL_LAB_KERNEL" not in os.environ:
        raise RefusedError(
            "this machine's kernel may not be crashed",
            reasons=["this machine is no lab guest"],
            hint="use a lab guest: 'vfiotool lab run --kernel 5.10 -- vfiotool stress …'",
        )
    if tree.find("/proc/sys/kernel/panic_on_oops") != "0":
        raise RefusedError(
            "this guest panics at the first kernel bug, before the run can report the bug",
            reasons=["kernel.panic_on_oops is set"],
            hint="clear the setting first: 'sysctl kernel.panic_on_oops=0'",
        )
