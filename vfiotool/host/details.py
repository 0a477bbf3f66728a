"""What is known of a single device beyond its line in a listing: capabilities, BARs, link, users."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vfiotool.host import guard
from vfiotool.host.devices import Device, device_path
from vfiotool.host.groups import Group
from vfiotool.host.tree import Tree, decode
from vfiotool.pci import config as pci_config

# include/linux/ioport.h
_IORESOURCE_IO = 0x100

_IORESOURCE_PREFETCH = 0x2000
_IORESOURCE_MEM_64 = 0x100000
_ROM = 6
_LINK = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")


@dataclass(frozen=True, slots=True)
class Bar:
    """One address range of a device: ``index`` 0 to 5, 6 is the ROM. ``size`` is in bytes."""

    index: int
    start: int
    size: int
    type: str
    prefetchable: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """One thing of this machine that uses the device: a network interface, a disk, a holder."""

    kind: str
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Details:
    """A device with its capabilities, BARs and users.

    ``capabilities`` is ``None`` where configuration space could not be read in full, which takes
    root; ``link`` maps the kernel's attribute names to their text, and is empty without PCI Express.
    """

    device: Device
    group: Group | None
    capabilities: tuple[pci_config.Capability, ...] | None
    bars: tuple[Bar, ...]
    link: Mapping[str, str]
    iommu: str | None
    usage: tuple[Usage, ...]


def read_details(tree: Tree, device: Device, group: Group | None) -> Details:
    """Read all about a device of a snapshot; bounded in time like the snapshot itself."""
    folder = device_path(device.address)
    guarded = guard.read_all(tree, [f"{folder}/{name}" for name in ("config", *_LINK)])
    config = guarded[f"{folder}/config"]
    return Details(
        device=device,
        group=group,
        capabilities=_capabilities(config),
        bars=_bars(tree.find(f"{folder}/resource") or ""),
        link={
            name: decode(answer)
            for name in _LINK
            if isinstance(answer := guarded[f"{folder}/{name}"], bytes)
        },
        iommu=tree.find_link(f"{folder}/iommu"),
        usage=tuple([*_interfaces(tree, folder), *_disks(tree, folder), *_holders(group)]),
    )


def interfaces(tree: Tree, address: str) -> list[str]:
    """Return the names of the network interfaces that a device carries."""
    return sorted(
        name
        for parent in _parents(tree, device_path(address))
        for name in tree.find_names(f"{parent}/net")
    )


def disks(tree: Tree, address: str) -> list[str]:
    """Return the names of the block devices and NVMe controllers that a device carries."""
    folder = device_path(address)
    return sorted({*_block_devices(tree, folder), *tree.find_names(f"{folder}/nvme")})


def _capabilities(config: guard.Answer) -> tuple[pci_config.Capability, ...] | None:
    if not isinstance(config, bytes) or len(config) < pci_config.STANDARD_SIZE:
        return None
    return pci_config.capabilities(config)


def _bars(resource: str) -> tuple[Bar, ...]:
    bars = []
    for index, line in enumerate(resource.splitlines()[: _ROM + 1]):
        try:
            start, end, flags = (int(number, 16) for number in line.split())
        except ValueError:
            continue
        if end:
            prefetchable = bool(flags & _IORESOURCE_PREFETCH)
            bars.append(Bar(index, start, end - start + 1, _bar_type(index, flags), prefetchable))
    return tuple(bars)


def _bar_type(index: int, flags: int) -> str:
    if flags & _IORESOURCE_IO:
        return "io"
    if index == _ROM:
        return "rom"
    return "memory64" if flags & _IORESOURCE_MEM_64 else "memory32"


def _parents(tree: Tree, folder: str) -> list[str]:
    """Return where a class folder may be: the device, or a virtio device below it."""
    children = [name for name in tree.find_names(folder) if name.startswith("virtio")]
    return [folder, *(f"{folder}/{name}" for name in children)]


def _interfaces(tree: Tree, folder: str) -> list[Usage]:
    usages = []
    for parent in _parents(tree, folder):
        for name in tree.find_names(f"{parent}/net"):
            state = tree.find(f"{parent}/net/{name}/operstate") or "unknown"
            usages.append(Usage("network", name, f"operstate {state}"))
    return usages


def _disks(tree: Tree, folder: str) -> list[Usage]:
    mounts = _mounts(tree)
    usages = []
    for name in _block_devices(tree, folder):
        where = [point for source, point in mounts if source.startswith(f"/dev/{name}")]
        detail = f"mounted on {', '.join(where)}" if where else "not mounted"
        usages.append(Usage("block", name, detail))
    return usages


def _block_devices(tree: Tree, folder: str) -> list[str]:
    """Return the block devices whose folder in sysfs lies below the device's own."""
    own = os.path.realpath(tree.path(folder)) + "/"
    return sorted(
        name
        for name in tree.find_names("/sys/class/block")
        if os.path.realpath(tree.path(f"/sys/class/block/{name}")).startswith(own)
        and not tree.exists(f"/sys/class/block/{name}/partition")
    )


def _mounts(tree: Tree) -> list[tuple[str, str]]:
    lines = (tree.find("/proc/self/mounts") or "").splitlines()
    return [(fields[0], fields[1]) for fields in map(str.split, lines) if len(fields) > 1]


def _holders(group: Group | None) -> list[Usage]:
    if group is None:
        return []
    return [
        Usage("holder", holder.node, f"pid {holder.pid} ({holder.comm}), fd {holder.fd}")
        for holder in group.holders
    ]
