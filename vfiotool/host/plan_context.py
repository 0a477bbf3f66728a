"""The input of a plan: the machine as read at one moment, and the rules that the user lifts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import DRIVERS, device_path
from vfiotool.host.denylist import OWNERS_LIST, Denial, find_denied
from vfiotool.host.devices import PciDevice, find_device
from vfiotool.host.direct_regions import is_kept_from_vfio
from vfiotool.host.era import Era, detect_era
from vfiotool.host.groups import IommuGroup, group_ids, is_vfio_driver, read_groups
from vfiotool.host.pci_domains import devices_by_maker
from vfiotool.host.power import IDLE_D3, sleeps_by_policy
from vfiotool.host.tree import Tree
from vfiotool.host.usage.device_usage import Usage, read_usage
from vfiotool.host.usage.namespaces import NAMESPACE_ALONE, why_processes_are_hidden
from vfiotool.host.usage.openers import is_group_open
from vfiotool.pci.config_space import BRIDGE_HEADERS, header_type
from vfiotool.pci.identity import is_silent


@dataclass(frozen=True, slots=True)
class PlanContext:
    """The machine at one moment, and the rules that the user lifts.

    ``groups`` are those of the devices that may be changed; up to kernel 5.18 all groups, because a driver
    whose module is loaded may bind a device in any of them. ``usage`` has what uses each device of these
    groups, and each device that may be changed. ``allowed`` names the lifted rules. ``denylist`` has, by
    address, why a device is on a denylist. ``open_groups`` are those of ``groups`` that a process has open.
    ``unseen_groups`` has, by number, why it cannot be known whether a process has a group open. ``unseen``
    are warnings of other facts that cannot be known from here. ``domains`` has the devices in the PCI domains
    that devices of these groups make, by the address of the maker. Of the devices that may be changed,
    ``silent`` has those that do not answer, and ``bridge_headers`` those whose header is that of a bridge.
    ``keeps_direct_regions`` is True if this kernel is known to keep groups with direct regions from VFIO.
    ``sleeps_on_its_own`` is True if vfio-pci puts idle devices into D3hot, whatever their power policy.
    """

    devices: Mapping[str, PciDevice]
    groups: Mapping[int, IommuGroup]
    usage: Mapping[str, Sequence[Usage]]
    loaded_drivers: frozenset[str]
    era: Era
    allowed: frozenset[str] = field(default_factory=frozenset)
    denylist: Mapping[str, Denial] = field(default_factory=dict)
    open_groups: frozenset[int] = field(default_factory=frozenset)
    unseen_groups: Mapping[int, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    sleeps_on_its_own: bool = False
    domains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    silent: frozenset[str] = field(default_factory=frozenset)
    bridge_headers: frozenset[str] = field(default_factory=frozenset)
    keeps_direct_regions: bool = False

    def group_of(self, address: str) -> IommuGroup | None:
        """Return the group of a device, ``None`` if it has none."""
        number = self.devices[address].iommu_group
        return None if number is None else self.groups.get(number)


def read_plan_context(
    tree: Tree,
    devices: Iterable[PciDevice],
    addresses: Iterable[str],
    *,
    allowed: Collection[str] = (),
    probes: bool = True,
) -> PlanContext:
    """Read all that a change of these addresses may affect; ``devices`` are all of the machine.

    Without ``probes`` nothing is touched: a device that sleeps is not woken to read its registers, and no
    node of a group is opened to find out whether a process that cannot be seen has it open.

    Raises:
        DeviceNotFoundError: there is no device at one of the addresses.
    """
    by_address = {device.address: device for device in devices}
    chosen = [find_device(by_address.values(), address) for address in addresses]
    era = detect_era(tree)
    touched = {device.iommu_group for device in chosen if device.iommu_group is not None}
    numbers = touched if era.has_dma_owner else group_ids(tree)
    groups = {group.id: group for group in read_groups(tree, numbers, by_address.values())}
    members = [address for number in sorted(touched & groups.keys()) for address in groups[number].devices]
    affected = dict.fromkeys([*(device.address for device in chosen), *members])
    headers = _read_headers(tree, [one for one in chosen if probes or one.answers])
    uses = {number: _group_use(tree, group, by_address, probes=probes) for number, group in groups.items()}
    return PlanContext(
        devices=by_address,
        groups=groups,
        usage=read_usage(tree, affected, groups.values()),
        loaded_drivers=frozenset(tree.find_names(DRIVERS)),
        era=era,
        allowed=frozenset(allowed),
        denylist=find_denied(tree, chosen),
        open_groups=frozenset(number for number, use in uses.items() if use is True),
        unseen_groups={number: use for number, use in uses.items() if isinstance(use, str)},
        unseen=tuple(_unseen(tree)),
        sleeps_on_its_own=not sleeps_by_policy(tree) and tree.find(IDLE_D3) != "Y",
        domains=devices_by_maker(tree, affected),
        silent=frozenset(
            device.address
            for device in chosen
            if device.answers is False or is_silent(headers.get(device.address, b""))
        ),
        bridge_headers=frozenset(a for a, header in headers.items() if header_type(header) in BRIDGE_HEADERS),
        keeps_direct_regions=is_kept_from_vfio(tree) is True,
    )


def _read_headers(tree: Tree, devices: Iterable[PciDevice]) -> dict[str, bytes]:
    """Return the header of each device on no VFIO driver; a header that cannot be read is left out."""
    paths = {
        f"{device_path(device.address)}/config": device.address
        for device in devices
        if not is_vfio_driver(device.driver)
    }
    found = bounded_reads.read_all(tree, list(paths))
    return {paths[path]: config for path, config in found.items() if isinstance(config, bytes)}


def _unseen(tree: Tree) -> Iterator[str]:
    why = why_processes_are_hidden(tree)
    if why == NAMESPACE_ALONE:
        yield f"the machine's {OWNERS_LIST} cannot be read from here ({why}): that of this container counts"


def _group_use(
    tree: Tree, group: IommuGroup, devices: Mapping[str, PciDevice], *, probes: bool
) -> bool | str:
    """Return whether a process has a group open, or why that cannot be known from here."""
    members = [devices[address] for address in group.devices]
    if group.holders:
        return True
    if not any(is_vfio_driver(device.driver) for device in members):
        return False
    if group.node is not None and not probes:
        return why_processes_are_hidden(tree) or False
    if group.node is not None:
        answer = is_group_open(tree.path(group.node))
        return f"{group.node} cannot be opened here to find out" if answer is None else answer
    if tree.exists(f"/sys/class/vfio/{group.id}"):
        return f"/dev/vfio/{group.id} is not in sight here"
    return why_processes_are_hidden(tree) or False
