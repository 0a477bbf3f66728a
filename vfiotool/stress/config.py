"""What is to be run: on which groups of devices, with which workloads, how often, and whether it may be."""

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


"""The name that a guest of the lab gives itself."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """``cycles`` bounds how often each workload is done on each group, ``duration`` the run, in seconds.

    ``allowed`` names rules of binding that are lifted, ``jobs`` is how many processes there are at most.
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
    """By unit, the cycles to do in place of the workloads'."""

    @property
    def addresses(self) -> list[str]:
        """All devices of the run."""
        return [address for unit in self.groups for address in unit.members]


def parse_workloads(names: str) -> tuple[str, ...]:
    """Return the workloads that a list with commas names; ``all`` is all of them.

    Raises:
        UsageError: there is no such workload.
    """
    chosen = dict.fromkeys(name.strip() for name in names.split(","))
    for name in chosen:
        if name != ALL and name not in WORKLOADS:
            raise UsageError(
                f"there is no workload '{name}'", hint=f"the names are {', '.join([*WORKLOADS, ALL])}"
            )
    return tuple(WORKLOADS) if ALL in chosen else tuple(chosen)


def require_lab(tree: Tree) -> None:
    """Refuse to have the kernel crash anywhere but in a guest of the lab that outlives it.

    Raises:
        RefusedError: this is no guest of the lab, or it would end before it can report.
    """
    if tree.find("/proc/sys/kernel/hostname") != LAB_HOST or "VFIOTOOL_LAB_KERNEL" not in os.environ:
        raise RefusedError(
            "this machine's kernel may not be crashed",
            reasons=["it is no guest of the lab"],
            hint="run it there: 'vfiotool lab run --kernel 5.10 -- vfiotool stress …'",
        )
    if tree.find("/proc/sys/kernel/panic_on_oops") != "0":
        raise RefusedError(
            "this guest ends with its kernel's first bug, before that can be reported",
            reasons=["kernel.panic_on_oops is set"],
            hint="clear it first: 'sysctl kernel.panic_on_oops=0'",
        )
