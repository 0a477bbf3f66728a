"""Records that a killed vfiotool left in the state directory."""

from __future__ import annotations

from collections.abc import Sequence

from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.pending_unbinds import pending_dir
from vfiotool.host.tree import Tree


def check_leftovers(tree: Tree, state_dir: str) -> Verdict:
    """No plan was interrupted, and no change is pending."""
    try:
        records, plans, pending = (
            sorted(name for name in tree.find_names(folder) if not name.endswith(".new"))
            for folder in (f"{state_dir}/journal", f"{state_dir}/transactions", pending_dir(state_dir))
        )
    except PermissionError:
        return Verdict(None, f"only root may read {state_dir}")
    return judge_leftovers(records, plans, pending)


def judge_leftovers(records: Sequence[str], plans: Sequence[str], pending: Sequence[str]) -> Verdict:
    """Judge by the names of the files. A record of a device is kept until the device is restored."""
    found = []
    if plans:
        names = ", ".join(name.partition(".json")[0] for name in plans)
        found.append(f"interrupted, or running right now: {names}")
    if pending:
        found.append(f"change pending: {', '.join(pending)}")
    if found:
        return Verdict(False, "; ".join(found), "vfiotool recover")
    return Verdict(True, f"none; devices to restore later: {len(records)}")
