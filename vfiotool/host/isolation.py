"""Why the kernel put devices into one IOMMU group (``pci_device_group()`` in drivers/iommu/iommu.c)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vfiotool.host import guard
from vfiotool.host.attributes import device_path
from vfiotool.host.tree import Tree
from vfiotool.pci import config as pci_config
from vfiotool.pci.address import is_address

_EXPRESS = 0x10
_ACS = 0x0D
_PORT_TYPES = {4: "root port", 5: "switch port", 6: "switch port"}
_PCIE_TO_PCI = 7


def why_together(tree: Tree, group: Sequence[str]) -> tuple[str, ...]:
    """Return a line for each cause that ties these devices of one group together.

    Reading capabilities beyond the header needs root; causes that cannot be seen are left out.
    """
    if len(group) < 2:
        return ()
    ancestors = {address: _ancestors(tree, address) for address in group}
    involved = dict.fromkeys([*group, *(bridge for chain in ancestors.values() for bridge in chain)])
    configs = _configs(tree, list(involved))
    return (
        *_behind_bridges(group, ancestors, configs),
        *_multifunction(group, configs),
    )


def _ancestors(tree: Tree, address: str) -> list[str]:
    """Return the bridges above a device, the nearest first, from where sysfs keeps its folder."""
    parts = os.path.realpath(tree.path(device_path(address))).split("/")[:-1]
    return [part for part in reversed(parts) if is_address(part) and part.count(":") == 2]


def _configs(tree: Tree, addresses: list[str]) -> dict[str, bytes]:
    paths = {f"{device_path(address)}/config": address for address in addresses}
    answers = guard.read_all(tree, list(paths))
    return {paths[path]: answer if isinstance(answer, bytes) else b"" for path, answer in answers.items()}


def _behind_bridges(
    group: Sequence[str], ancestors: dict[str, list[str]], configs: dict[str, bytes]
) -> list[str]:
    """Name each bridge that ties what is below it, with those of the group that are below it."""
    below: dict[str, list[str]] = {}
    for address in group:
        for bridge in ancestors[address]:
            below.setdefault(bridge, []).append(address)
    lines = []
    for bridge, addresses in below.items():
        cause = _bridge_cause(configs[bridge])
        tied = [*addresses, bridge] if bridge in group else addresses
        if cause is not None and len(tied) > 1:
            lines.append(f"{', '.join(addresses)}: behind {bridge}, {cause}")
    return lines


def _bridge_cause(config: bytes) -> str | None:
    if len(config) < pci_config.STANDARD_SIZE:
        return None
    offsets = _offsets(config)
    express = offsets.get((False, _EXPRESS))
    if express is None:
        return "a PCI bridge, whose bus cannot tell its devices' requests apart"
    port_type = config[express + 2] >> 4 & 0xF
    if port_type == _PCIE_TO_PCI:
        return "a PCIe-to-PCI bridge, which sends their requests under an id of its own"
    if port_type in _PORT_TYPES and (True, _ACS) not in offsets:
        return f"a {_PORT_TYPES[port_type]} without ACS, which may route requests between them"
    return None


def _multifunction(group: Sequence[str], configs: dict[str, bytes]) -> list[str]:
    slots: dict[str, list[str]] = {}
    for address in group:
        slots.setdefault(address.partition(".")[0], []).append(address)
    return [
        f"{', '.join(functions)}: functions of one device without ACS, which may pass requests on"
        for functions in slots.values()
        if len(functions) > 1 and any(_lacks_acs(configs[address]) for address in functions)
    ]


def _lacks_acs(config: bytes) -> bool:
    return len(config) >= pci_config.STANDARD_SIZE and (True, _ACS) not in _offsets(config)


def _offsets(config: bytes) -> dict[tuple[bool, int], int]:
    return {(cap.extended, cap.id): cap.offset for cap in pci_config.capabilities(config)}
