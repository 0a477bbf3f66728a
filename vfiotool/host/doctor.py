"""Is this machine ready for VFIO? Every check, in an order in which one mends things."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec

from vfiotool.errors import VfioToolError
from vfiotool.host.checks.groups import check_nodes, check_viability
from vfiotool.host.checks.iommu import check_iommu, check_remapping
from vfiotool.host.checks.kernel import check_era, check_lockdown, check_modules
from vfiotool.host.checks.leftovers import check_leftovers
from vfiotool.host.checks.memory import check_hugepages, check_memlock
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.tree import Tree

P = ParamSpec("P")

CHECKS: Mapping[str, Callable[[Tree, str], Verdict]] = {
    "iommu": check_iommu,
    "interrupt-remapping": check_remapping,
    "modules": check_modules,
    "kernel": check_era,
    "lockdown": check_lockdown,
    "memlock": check_memlock,
    "hugepages": check_hugepages,
    "nodes": check_nodes,
    "viability": check_viability,
    "leftovers": check_leftovers,
}


@dataclass(frozen=True, slots=True)
class Check:
    """A check's name and verdict; ``ok`` is ``None`` where it cannot be known from here."""

    name: str
    ok: bool | None
    detail: str
    remedy: str | None


def examine(tree: Tree, *, state_dir: str = STATE_DIR) -> list[Check]:
    """Run every check. What cannot be read, for want of rights or of files, makes a check unknown.

    Works without root, and is bounded in time as a listing is.
    """
    return judge(CHECKS, tree, state_dir)


def judge(checks: Mapping[str, Callable[P, Verdict]], *args: P.args, **kwargs: P.kwargs) -> list[Check]:
    """Run checks on what they are for; what cannot be read makes one unknown."""
    judged = []
    for name, check in checks.items():
        try:
            verdict = check(*args, **kwargs)
        except (OSError, ValueError, VfioToolError) as error:
            verdict = Verdict(None, f"it cannot be told: {error}")
        judged.append(Check(name, verdict.ok, verdict.detail, verdict.remedy))
    return judged
