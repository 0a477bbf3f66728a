"""IOMMU groups: the devices that the kernel isolates together, and whether userspace may own them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vfiotool.errors import DeviceNotFoundError
from vfiotool.host import bounded_reads
from vfiotool.host.attribute_reader import to_decimal
from vfiotool.host.attributes import GROUPS, VFIO_NODES, addresses, device_path, find_group
from vfiotool.host.devices import PciDevice
from vfiotool.host.era import Era, find_era
from vfiotool.host.group_causes import group_causes
from vfiotool.host.group_members import GroupMember, read_members
from vfiotool.host.holders import Holder, find_holders
from vfiotool.host.pci_domains import devices_by_maker, domains_text
from vfiotool.host.tree import Tree, decode

_GUARDED = ("type", "reserved_regions")
BRIDGE_CLASSES = (0x0604, 0x0607, 0x0609)


@dataclass(frozen=True, slots=True)
class Blocker:
    """A device whose driver makes its group not viable."""

    address: str
    driver: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReservedRegion:
    """A range of I/O virtual addresses that must not be mapped; both ends are included."""

    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class IommuGroup:
    """An IOMMU group at one moment.

    ``type`` is the kernel's name for the type of the default domain. ``viable`` is ``None`` if that cannot be
    known: a copy of a machine may lack the kernel's release, or the drivers. ``node`` is ``None`` until a
    device of the group is on a VFIO driver. ``holders`` has the processes that this user may inspect. ``why``
    says why the devices share a group, a line for each cause; reading it needs root. ``members`` has more of
    the devices, see ``with_members``; empty unless that was called.
    """

    id: int
    type: str | None
    viable: bool | None
    blockers: tuple[Blocker, ...]
    devices: tuple[str, ...]
    reserved_regions: tuple[ReservedRegion, ...] | None
    node: str | None
    holders: tuple[Holder, ...]
    why: tuple[str, ...] | None
    unavailable: tuple[str, ...]
    members: tuple[GroupMember, ...] = ()

    @property
    def direct_regions(self) -> tuple[ReservedRegion, ...]:
        """The reserved regions that the firmware uses by way of the device: see ``direct_regions``."""
        return tuple(region for region in self.reserved_regions or () if region.type == "direct")


def group_ids(tree: Tree) -> list[int]:
    """Return the numbers of all groups, sorted. They can be sparse, and a group's number can change.

    A copy of a machine may have the devices' links to their groups alone.
    """
    numbers = {to_decimal(name) for name in tree.find_names(GROUPS)}
    if not tree.is_complete:
        numbers |= {find_group(tree, address) for address in addresses(tree)}
    return sorted(number for number in numbers if number is not None and number >= 0)


def read_groups(tree: Tree, wanted: Iterable[int], devices: Iterable[PciDevice]) -> list[IommuGroup]:
    """Read the groups with these numbers; ``devices`` are all devices of the machine.

    A group that disappears meanwhile is left out.
    """
    members: dict[int, list[PciDevice]] = {}
    for device in devices:
        if device.iommu_group is not None:
            members.setdefault(device.iommu_group, []).append(device)
    present = [number for number in wanted if number in members or tree.exists(f"{GROUPS}/{number}")]
    guarded = bounded_reads.read_all(
        tree, [f"{GROUPS}/{number}/{name}" for number in present for name in _GUARDED]
    )
    era = find_era(tree)
    holders = find_holders(tree)
    present_members = {number: tuple(members.get(number, ())) for number in present}
    why = group_causes(tree, {n: [device.address for device in m] for n, m in present_members.items()})
    shared = [device.address for found in present_members.values() if len(found) > 1 for device in found]
    domains = devices_by_maker(tree, shared)
    return [
        _read_group(tree, number, devices, era, holders, guarded, why[number], domains)
        for number, devices in present_members.items()
    ]


def read_group(tree: Tree, number: int, devices: Iterable[PciDevice]) -> IommuGroup:
    """Read one group.

    Raises:
        DeviceNotFoundError: there is no group with this number.
    """
    found = read_groups(tree, [number], devices)
    if not found:
        raise DeviceNotFoundError(
            f"there is no IOMMU group {number}", hint="'vfiotool groups' shows all groups"
        )
    return found[0]


def with_members(tree: Tree, groups: Iterable[IommuGroup], devices: Iterable[PciDevice]) -> list[IommuGroup]:
    """Return the groups with what is known of each of their devices; ``devices`` are all of the machine."""
    known = list(groups)
    present = {address for group in known for address in group.devices}
    members = read_members(tree, [device for device in devices if device.address in present])
    return [replace(group, members=tuple(members[one] for one in group.devices)) for group in known]


def blockers(
    devices: Iterable[PciDevice], era: Era, domains: Mapping[str, Sequence[str]] | None = None
) -> tuple[Blocker, ...]:
    """Return the devices of a group that make it not viable, by the rules of the era.

    ``domains`` has the devices of the PCI domains that devices of the group make, by the maker's address.
    Source: up to 5.18 ``vfio_dev_viable()`` in drivers/vfio/vfio.c; since 5.19 a driver without
    ``driver_managed_dma`` claims the group for the host (commit 70693f470848).
    """
    group = tuple(devices)
    return tuple(
        Blocker(device.address, device.driver, _reason(device, device.driver, group, domains or {}))
        for device in group
        if device.driver is not None and not _is_harmless(device, device.driver, era)
    )


def _viability(
    devices: Iterable[PciDevice], era: Era | None, domains: Mapping[str, Sequence[str]]
) -> tuple[bool | None, tuple[Blocker, ...]]:
    """Return whether a group is viable, and the devices that are known to block it.

    ``None`` stands for unknown: that of an unknown era if the rules of the eras differ, and that of a copy
    that does not have the drivers.
    """
    group = tuple(devices)
    found = [blockers(group, one, domains) for one in ([era] if era is not None else Era)]
    known = tuple(blocker for blocker in found[0] if all(blocker in one for one in found))
    if known:
        return False, known
    is_known = not any(found) and not any("driver" in device.unavailable for device in group)
    return (True if is_known else None), ()


def is_vfio_driver(driver: str | None) -> bool:
    """Return True if a driver is vfio-pci or a variant of it (``mlx5_vfio_pci``, …)."""
    return driver is not None and "vfio" in driver


def on_vfio(tree: Tree) -> list[str]:
    """Return the addresses of the devices on a VFIO driver, sorted. The reads take no lock."""
    return [one for one in addresses(tree) if is_vfio_driver(tree.find_link(f"{device_path(one)}/driver"))]


def is_bridge(device: PciDevice) -> bool:
    """Return True if a device is known to be a PCI-to-PCI or CardBus bridge, by its class.

    A bridge has its own type of header.
    """
    return device.class_code is not None and device.class_code >> 8 in BRIDGE_CLASSES


def _is_harmless(device: PciDevice, driver: str, era: Era) -> bool:
    if is_vfio_driver(driver) or driver == "pci-stub":
        return True
    return driver == "pcieport" if era.has_dma_owner else is_bridge(device)


def _reason(
    device: PciDevice, driver: str, group: Iterable[PciDevice], domains: Mapping[str, Sequence[str]]
) -> str:
    """Return why a device blocks its group. How to free it says ``freeing``, which asks the rules."""
    address = device.address
    if is_bridge(device):
        return (
            f"{driver} drives a bridge and claims the group for the host, unlike pcieport: unbind it with "
            f"'echo {address} > /sys/bus/pci/devices/{address}/driver/unbind'"
        )
    if address in domains:
        return f"{driver} makes {domains_text(domains[address])}, which goes with it, and all of its devices"
    for maker, made in domains.items():
        if address in made:
            return f"{driver} is a host driver of a device in {domains_text(made)}, which goes with {maker}"
    others = [one for one in group if one.address != address and not is_bridge(one)]
    if not others:
        return f"{driver} is a host driver"
    move = any(_slot(one.address) != _slot(address) for one in others)
    more = ": in a slot whose port has ACS the card gets a group of its own" if move else ""
    return f"{driver} is a host driver, and its group shares one address space{more}"


def _slot(address: str) -> str:
    return address.rpartition(".")[0]


def _read_group(
    tree: Tree,
    number: int,
    devices: tuple[PciDevice, ...],
    era: Era | None,
    holders: Mapping[str, tuple[Holder, ...]],
    guarded: Mapping[str, bounded_reads.ReadResult],
    why: tuple[str, ...] | None,
    domains: Mapping[str, Sequence[str]],
) -> IommuGroup:
    domain_type = _text(guarded[f"{GROUPS}/{number}/type"])
    regions = _text(guarded[f"{GROUPS}/{number}/reserved_regions"])
    viable, blocking = _viability(devices, era, domains)
    node = f"{VFIO_NODES}/{number}"
    nodes = [node] + [device.cdev for device in devices if device.cdev is not None]
    unseen = not tree.is_complete and not tree.exists(VFIO_NODES)
    readings = {
        "type": domain_type,
        "viable": viable,
        "reserved_regions": regions,
        "node": None if unseen else node,
        "holders": None if unseen else holders,
        "why": why,
    }
    return IommuGroup(
        id=number,
        type=domain_type,
        viable=viable,
        blockers=blocking,
        devices=tuple(device.address for device in devices),
        reserved_regions=None if regions is None else _regions(regions),
        node=node if tree.exists(node) else None,
        holders=tuple(holder for path in nodes for holder in holders.get(path, ())),
        why=why,
        unavailable=tuple(name for name, reading in readings.items() if reading is None),
    )


def _text(answer: bounded_reads.ReadResult) -> str | None:
    return decode(answer) if isinstance(answer, bytes) else None


def _regions(text: str) -> tuple[ReservedRegion, ...]:
    """Parse lines of ``0xSTART 0xEND TYPE``; skip other lines."""
    regions = []
    for line in text.splitlines():
        start, _, rest = line.partition(" ")
        end, _, kind = rest.partition(" ")
        try:
            regions.append(ReservedRegion(int(start, 16), int(end, 16), kind.strip()))
        except ValueError:
            continue
    return tuple(regions)
