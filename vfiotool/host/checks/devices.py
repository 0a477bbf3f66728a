"""Devices on a VFIO driver: whether VFIO can use their BARs, and whether they wake."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from vfiotool.host.attributes import device_path
from vfiotool.host.bar_owners import BarOwner, bar_owners, how_to_release
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.device_state import node_path
from vfiotool.host.groups import on_vfio
from vfiotool.host.holders import find_holders
from vfiotool.host.power import Power, read_power, sleeps_by_policy
from vfiotool.host.tree import Tree

_PARAMETER = "vfio-pci's module parameter disable_idle_d3=1"


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


def check_power(tree: Tree, state_dir: str) -> Verdict:
    """No device on a VFIO driver sleeps though the kernel takes it for awake."""
    devices = on_vfio(tree)
    powers = read_power(tree, devices)
    # Again, because a device may have woken between the two reads.
    powers |= read_power(tree, [address for address, power in powers.items() if power.is_out_of_step])
    holders = find_holders(tree)
    held = [address for address in devices if any(node in holders for node in _nodes(tree, address))]
    return judge_power(powers, held=held, by_policy=sleeps_by_policy(tree))


def judge_power(powers: Mapping[str, Power], *, held: Collection[str], by_policy: bool) -> Verdict:
    """Judge by the power of the devices.

    ``held`` are those that a process has open, which may put them into D3hot. ``by_policy`` is what
    ``sleeps_by_policy`` returns.
    """
    stuck = {
        address: power
        for address, power in powers.items()
        if power.does_not_wake(by_policy=by_policy) and (power.state != "D3hot" or address not in held)
    }
    if stuck:
        keep_awake = f"'vfiotool bind --power on {' '.join(stuck)}'" if by_policy else _PARAMETER
        return Verdict(
            False,
            "; ".join(f"{address} is in {power}: {_why_stuck(power)}" for address, power in stuck.items()),
            "turn the machine off and on again, since a reboot may leave the device without power; then "
            f"{keep_awake} keeps it awake while it is idle",
        )
    asleep = [f"{address} in {power}" for address, power in powers.items() if power.is_asleep]
    if asleep:
        return Verdict(True, f"asleep: {'; '.join(asleep)}")
    return Verdict(True, "no device on a VFIO driver is asleep")


def _why_stuck(power: Power) -> str:
    unless = (
        ", unless a program that cannot be seen here has put it to sleep" if power.state == "D3hot" else ""
    )
    return f"it does not wake{unless}"


def _nodes(tree: Tree, address: str) -> list[str]:
    """Return the nodes through which a process can have a device open."""
    cdevs = [f"/dev/vfio/devices/{name}" for name in tree.find_names(f"{device_path(address)}/vfio-dev")]
    node = node_path(tree, address)
    return cdevs if node is None else [node, *cdevs]
