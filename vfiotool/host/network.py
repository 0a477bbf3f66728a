"""What this machine's network does with its interfaces: addresses, routes, and what is built on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vfiotool.host.claim import Claim
from vfiotool.host.tree import Tree


def interface_claims(tree: Tree, names: Iterable[str]) -> Mapping[str, tuple[Claim, ...]]:
    """Return why each of these interfaces must not be taken lightly; an idle one has no claims."""
    return {name: tuple(_claims(tree, name)) for name in names}


def _claims(tree: Tree, name: str) -> Iterable[Claim]:
    if tree.find(f"/sys/class/net/{name}/operstate") == "up":
        yield Claim("network", "is up")
