"""The fields of ``vfiotool show`` beyond those of ``vfiotool list``: capabilities, BARs, link, users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path
from vfiotool.host.bars import Bar, read_bars
from vfiotool.host.devices import PciDevice
from vfiotool.host.groups import IommuGroup, read_group
from vfiotool.host.power import Power, power_of, power_paths
from vfiotool.host.tree import Tree, decode
from vfiotool.host.usage.device_usage import Usage, read_usage
from vfiotool.pci import config_space

_LINK = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")


@dataclass(frozen=True, slots=True)
class Details:
    """A device with its capabilities, BARs and users.

    ``capabilities`` is ``None``, and named in ``unavailable``, if configuration space could not be read in
    full, which needs root. ``link`` maps the kernel's attribute names to their text, and is empty without
    PCI Express.
    """

    device: PciDevice
    group: IommuGroup | None
    capabilities: tuple[config_space.Capability, ...] | None
    bars: tuple[Bar, ...]
    link: Mapping[str, str]
    iommu: str | None
    power: Power
    usage: tuple[Usage, ...]
    unavailable: tuple[str, ...]


def read_details(tree: Tree, device: PciDevice, devices: Iterable[PciDevice]) -> Details:
    """Read the details of a device, bounded in time like a listing; ``devices`` are all of the machine."""
    number = device.iommu_group
    group = None if number is None else read_group(tree, number, devices)
    folder = device_path(device.address)
    # The power comes first: a read of configuration space wakes a device in D3cold.
    paths = [*power_paths(device.address), *(f"{folder}/{name}" for name in ("config", *_LINK))]
    guarded = bounded_reads.read_all(tree, paths)
    capabilities = _capabilities(guarded[f"{folder}/config"])
    return Details(
        device=device,
        group=group,
        capabilities=capabilities,
        bars=read_bars(tree, device.address),
        link={
            name: decode(answer) for name in _LINK if isinstance(answer := guarded[f"{folder}/{name}"], bytes)
        },
        iommu=tree.find_link(f"{folder}/iommu"),
        power=power_of(tree, device.address, guarded),
        usage=read_usage(tree, [device.address], [group] if group else [])[device.address],
        unavailable=("capabilities",) if capabilities is None else (),
    )


def _capabilities(config: bounded_reads.ReadResult) -> tuple[config_space.Capability, ...] | None:
    if not isinstance(config, bytes) or len(config) < config_space.STANDARD_SIZE:
        return None
    return config_space.capabilities(config)
