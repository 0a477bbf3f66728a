"""The fields of ``vfiotool show`` beyond those of ``vfiotool list``: capabilities, BARs, link, users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import answers, device_path
from vfiotool.host.bars import Bar, read_bars
from vfiotool.host.config_space import is_whole, shown_part
from vfiotool.host.devices import PciDevice
from vfiotool.host.groups import IommuGroup, read_group, with_members
from vfiotool.host.power import Power, power_of, power_paths
from vfiotool.host.tree import Tree, decode
from vfiotool.host.usage.device_usage import Usage, read_usage
from vfiotool.host.usage.sight import unseen_uses
from vfiotool.pci.config_space import Capability, capabilities

_LINK = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")


@dataclass(frozen=True, slots=True)
class Details:
    """A device with its capabilities, BARs and users.

    ``capabilities`` is ``None``, and named in ``unavailable``, if configuration space could not be read in
    full, which needs root, or if nothing answers. ``link`` maps the kernel's attribute names to their text,
    and is empty without PCI Express. ``usage`` is named in ``unavailable`` if ``unseen_uses`` says that
    files are missing that would show more; it is ``None`` if then none is in sight.
    """

    device: PciDevice
    group: IommuGroup | None
    capabilities: tuple[Capability, ...] | None
    bars: tuple[Bar, ...]
    link: Mapping[str, str]
    iommu: str | None
    power: Power
    usage: tuple[Usage, ...] | None
    unseen_uses: tuple[str, ...]
    unavailable: tuple[str, ...]


def read_details(tree: Tree, device: PciDevice, devices: Iterable[PciDevice]) -> Details:
    """Read the details of a device, bounded in time like a listing; ``devices`` are all of the machine."""
    number = device.iommu_group
    present = list(devices)
    groups = [] if number is None else with_members(tree, [read_group(tree, number, present)], present)
    group = groups[0] if groups else None
    folder = device_path(device.address)
    # The power comes first: a read of configuration space wakes a device in D3cold.
    paths = [*power_paths(device.address), *(f"{folder}/{name}" for name in ("config", *_LINK))]
    guarded = bounded_reads.read_all(tree, paths)
    config = shown_part(guarded[f"{folder}/config"])
    link = {
        name: decode(answer) for name in _LINK if isinstance(answer := guarded[f"{folder}/{name}"], bytes)
    }
    lacks_link = tree.is_complete and not any(tree.exists(f"{folder}/{name}") for name in _LINK)
    iommu = tree.find_link(f"{folder}/iommu")
    usage = read_usage(tree, [device.address], [group] if group else [])[device.address]
    unseen = unseen_uses(tree)
    known = {
        "group": "iommu_group" not in device.unavailable,
        "capabilities": is_whole(config),
        "bars": tree.exists(f"{folder}/resource"),
        "link": bool(link) or lacks_link,
        "iommu": iommu is not None or tree.is_complete,
        "usage": not unseen,
    }
    return Details(
        device=_with_answer(device, config),
        group=group,
        capabilities=capabilities(config) if is_whole(config) else None,
        bars=read_bars(tree, device.address),
        link=link,
        iommu=iommu,
        power=power_of(tree, device.address, guarded),
        usage=None if unseen and not usage else usage,
        unseen_uses=unseen,
        unavailable=tuple(name for name, is_known in known.items() if not is_known),
    )


def _with_answer(device: PciDevice, config: bytes) -> PciDevice:
    """Return the device with what its registers say: a listing does not wake a device to read them."""
    answer = answers(config)
    if answer is None:
        return device
    unavailable = tuple(name for name in device.unavailable if name != "answers")
    return replace(device, answers=answer, unavailable=unavailable)
