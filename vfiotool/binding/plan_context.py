"""What plans and refusals are made from: one moment of the machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vfiotool.binding.steps import DRIVERS
from vfiotool.host.denylist import Denial, find_denied
from vfiotool.host.devices import Device, find_device
from vfiotool.host.era import Era, detect_era
from vfiotool.host.groups import IommuGroup, group_ids, read_groups
from vfiotool.host.tree import Tree
from vfiotool.host.usage.device_usage import Usage, read_usage
from vfiotool.host.usage.openers import is_group_open


@dataclass(frozen=True, slots=True)
class PlanContext:
    """One moment of the machine, and what the user allows.

    ``groups`` has those of the devices that may be touched; up to kernel 5.18 all, for a driver that is
    loaded may reach into any. ``usage`` has what hangs on each device of these groups, and on each that
    may be touched. ``allowed`` names the rules that are lifted, ``denylist`` says of addresses why they
    are on one, ``open_groups`` has those of the groups that are open, by whomever.
    """

    devices: Mapping[str, Device]
    groups: Mapping[int, IommuGroup]
    usage: Mapping[str, Sequence[Usage]]
    loaded_drivers: frozenset[str]
    era: Era
    allowed: frozenset[str] = field(default_factory=frozenset)
    denylist: Mapping[str, Denial] = field(default_factory=dict)
    open_groups: frozenset[int] = field(default_factory=frozenset)

    def group_of(self, address: str) -> IommuGroup | None:
        """Return the group that a device is in, where it is in one."""
        number = self.devices[address].iommu_group
        return None if number is None else self.groups.get(number)


def read_plan_context(
    tree: Tree, devices: Iterable[Device], wanted: Iterable[str], *, allowed: Collection[str] = ()
) -> PlanContext:
    """Look at all that binding these addresses may touch; ``devices`` are all of the machine.

    Raises:
        DeviceNotFoundError: there is no device at one of the addresses.
    """
    by_address = {device.address: device for device in devices}
    chosen = [find_device(by_address.values(), address) for address in wanted]
    era = detect_era(tree)
    touched = {device.iommu_group for device in chosen if device.iommu_group is not None}
    numbers = touched if era.has_dma_owner else group_ids(tree)
    groups = {group.id: group for group in read_groups(tree, numbers, by_address.values())}
    members = [address for number in sorted(touched & groups.keys()) for address in groups[number].devices]
    looked_at = dict.fromkeys([*(device.address for device in chosen), *members])
    return PlanContext(
        devices=by_address,
        groups=groups,
        usage=read_usage(tree, looked_at, groups.values()),
        loaded_drivers=frozenset(tree.find_names(DRIVERS)),
        era=era,
        allowed=frozenset(allowed),
        denylist=find_denied(tree, chosen),
        open_groups=frozenset(number for number, group in groups.items() if _is_open(tree, group)),
    )


def _is_open(tree: Tree, group: IommuGroup) -> bool:
    return bool(group.holders) or (group.node is not None and is_group_open(tree.path(group.node)))
