"""Devices on a VFIO driver: whether VFIO can use their BARs."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.host.bar_owners import BarOwner, bar_owners, how_to_release
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.groups import on_vfio
from vfiotool.host.tree import Tree


def check_bars(tree: Tree, state_dir: str) -> Verdict:
    """Nothing else has a BAR of a device on a VFIO driver."""
    owners = {address: bar_owners(tree, address) for address in on_vfio(tree)}
    remedies = {owner.name: how_to_release(tree, owner.name) for found in owners.values() for owner in found}
    return judge_bars(
        ((address, owner) for address, found in owners.items() for owner in found), remedies.values()
    )


def judge_bars(owners: Iterable[tuple[str, BarOwner]], remedies: Iterable[str]) -> Verdict:
    """Judge by the owners of the BARs, each with the address of its device."""
    found = [
        f"{owner.name} has {owner.part} of {address}, which VFIO then cannot use" for address, owner in owners
    ]
    if found:
        return Verdict(False, "; ".join(found), "; ".join(dict.fromkeys(remedies)))
    return Verdict(True, "nothing else has a BAR of a device on a VFIO driver")
