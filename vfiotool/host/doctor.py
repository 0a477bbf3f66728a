"""The checks of whether this machine is ready for VFIO, in the order in which to fix what fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec

from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import DRIVERS, GROUPS
from vfiotool.host.checks.devices import check_bars, check_power
from vfiotool.host.checks.groups import check_direct_regions, check_nodes, check_viability
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
    "direct-regions": check_direct_regions,
    "bars": check_bars,
    "power": check_power,
    "leftovers": check_leftovers,
}


# The verdict that a check has if there is nothing to see, and where it looks: a copy may lack the files.
_BY_ABSENCE: Mapping[str, tuple[bool, tuple[str, ...]]] = {
    "iommu": (False, (GROUPS,)),
    "interrupt-remapping": (False, ("/proc/interrupts",)),
    "modules": (False, ("/lib/modules",)),
    "nodes": (True, ("/dev",)),
    "viability": (True, (DRIVERS,)),
    "direct-regions": (True, (DRIVERS,)),
    "bars": (True, (DRIVERS, "/proc/iomem")),
    "power": (True, (DRIVERS,)),
    "leftovers": (True, ("/run",)),
}


@dataclass(frozen=True, slots=True)
class Check:
    """The name and the verdict of a check; ``ok`` is ``None`` if the check cannot decide."""

    name: str
    ok: bool | None
    detail: str
    remedy: str | None


def examine(tree: Tree, *, state_dir: str = STATE_DIR) -> list[Check]:
    """Run every check. A check whose files are missing or not readable has no verdict: ``ok`` is ``None``.

    So has a check of a copy whose verdict is due to files that the copy left out. Works without root. Bounded
    in time like a listing.
    """
    checks = judge(CHECKS, tree, state_dir)
    return checks if tree.is_complete else [_as_far_as_seen(tree, check) for check in checks]


def _as_far_as_seen(tree: Tree, check: Check) -> Check:
    """Return the check without a verdict if the verdict comes from files that are not in the copy."""
    verdict, needed = _BY_ABSENCE.get(check.name, (None, ()))
    missing = [path for path in needed if not tree.exists(path)]
    if check.ok is None or check.ok is not verdict or not missing:
        return check
    return Check(
        check.name, None, f"unknown: the copy of the machine has no {' and no '.join(missing)}", None
    )


def judge(checks: Mapping[str, Callable[P, Verdict]], *args: P.args, **kwargs: P.kwargs) -> list[Check]:
    """Run checks with these arguments. A check that cannot read its files gets ``ok=None``."""
    judged = []
    for name, check in checks.items():
        try:
            verdict = check(*args, **kwargs)
        except (OSError, ValueError, VfioToolError) as error:
            verdict = Verdict(None, f"unknown: {error}")
        judged.append(Check(name, verdict.ok, verdict.detail, verdict.remedy))
    return judged
