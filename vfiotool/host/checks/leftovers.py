"""What vfiotools that were killed have left in the state folder."""

from __future__ import annotations

from collections.abc import Sequence

from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.pending_unbinds import pending_dir
from vfiotool.host.tree import Tree


def check_leftovers(tree: Tree, state_dir: str) -> Verdict:
    """No plan was interrupted, and no unbind is pending."""
    try:
        records, plans, unbinds = (
            sorted(name for name in tree.find_names(folder) if not name.endswith(".new"))
            for folder in (f"{state_dir}/journal", f"{state_dir}/transactions", pending_dir(state_dir))
        )
    except PermissionError:
        return Verdict(None, f"only root can look into {state_dir}")
    return judge_leftovers(records, plans, unbinds)


def judge_leftovers(records: Sequence[str], plans: Sequence[str], unbinds: Sequence[str]) -> Verdict:
    """Judge by the names of the files; a record is kept for as long as its device is handed over."""
    found = []
    if plans:
        names = ", ".join(name.partition(".json")[0] for name in plans)
        found.append(f"a vfiotool was killed amid its plan, or is at work right now: {names}")
    if unbinds:
        found.append(f"an unbind is pending, or was left so: {', '.join(unbinds)}")
    if found:
        return Verdict(False, "; ".join(found), "vfiotool recover")
    return Verdict(True, f"none; {len(records)} devices are recorded, to be restored")
