"""What this machine does with its disks: file systems, swap, and what is built on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vfiotool.host.claim import Claim
from vfiotool.host.tree import Tree


def disk_claims(tree: Tree, names: Iterable[str]) -> Mapping[str, tuple[Claim, ...]]:
    """Return why each of these disks and partitions must not be taken lightly; an idle one has no claims."""
    return {name: tuple(_claims(tree, name)) for name in names}


def _claims(tree: Tree, name: str) -> Iterable[Claim]:
    lines = (tree.find("/proc/self/mounts") or "").splitlines()
    mounts = [(fields[0], fields[1]) for fields in map(str.split, lines) if len(fields) > 1]
    points = [point for source, point in mounts if source == f"/dev/{name}"]
    if points:
        yield Claim("mounted", f"is mounted on {', '.join(points)}")
