"""Why the kernel put devices into one IOMMU group (``pci_device_group()`` in drivers/iommu/iommu.c).

The kernel considers, in this order: a device that issues the DMA of the PCI domain that it makes, a bridge
that sends all requests of its bus under one requester id (an alias), a bridge on the path to the root that
lacks ACS isolation, functions of a multifunction device that lack ACS isolation. What none of these explains
is due to a quirk in the kernel or to the IOMMU driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vfiotool.host import bounded_reads
from vfiotool.host.attributes import device_path
from vfiotool.host.pci_domains import SYS_DEVICES, bridges_above, domain_makers, domains_text
from vfiotool.host.tree import Tree
from vfiotool.pci import config_space
from vfiotool.pci.acs import PortType, port_type, weakness

_PORTS: dict[int, str] = {
    PortType.ROOT_PORT: "a root port",
    PortType.UPSTREAM: "a switch's upstream port",
    PortType.DOWNSTREAM: "a switch's downstream port",
}


@dataclass(frozen=True, slots=True)
class _Function:
    """The configuration space of a function, and the bridges ``above`` it, nearest first.

    ``maker`` is the device that makes its PCI domain; the firmware makes most domains. ``has_place`` is False
    if the path in ``/sys/devices``, which names what is above, is not known.
    """

    address: str
    maker: str | None
    has_place: bool
    above: tuple[str, ...]
    config: bytes
    has_group: bool
    is_vf: bool

    @property
    def slot(self) -> str:
        return self.address.rpartition(".")[0]

    @property
    def is_known(self) -> bool:
        """Return True if all that a cause is judged by could be read."""
        return self.has_place and len(self.config) >= config_space.STANDARD_SIZE

    @property
    def weakness(self) -> str | None:
        """The ACS weakness of the function, or ``None``.

        The kernel scans further functions only if function 0 has the multifunction bit, so every function
        but 0 is part of a multifunction device; a VF is judged by its own bit.
        """
        flag = bool(self.config[config_space.HEADER_TYPE] & config_space.MULTIFUNCTION)
        return weakness(self.config, multifunction=flag or not (self.is_vf or self.address.endswith(".0")))


@dataclass(frozen=True, slots=True)
class _Tie:
    """A cause, and the devices of the group that it puts together."""

    devices: tuple[str, ...]
    cause: str


def group_causes(tree: Tree, groups: Mapping[int, Sequence[str]]) -> dict[int, tuple[str, ...] | None]:
    """Return why the devices of each group share it: a line for each cause. A group is given by its devices.

    ``None`` if configuration space could not be read in full, which needs root, or if the folder of a
    capture does not have the devices at their places in ``/sys/devices``.
    """
    shared = {number: devices for number, devices in groups.items() if len(devices) > 1}
    functions = _read_functions(tree, [address for devices in shared.values() for address in devices])
    return {number: _why(tree, shared[number], functions) if number in shared else () for number in groups}


def _why(tree: Tree, group: Sequence[str], functions: Mapping[str, _Function]) -> tuple[str, ...] | None:
    domains = list(_domain_ties(tree, group, functions))
    explained = {address for tie in domains for address in tie.devices}
    rest = [address for address in group if address not in explained]
    involved = {address for device in rest for address in (device, *functions[device].above)}
    if not all(functions[address].is_known for address in involved):
        return None
    ties = [
        *domains,
        *_bridge_ties(rest, functions),
        *_slot_ties([functions[address] for address in rest]),
    ]
    return (*(tie.cause for tie in ties), *_other_causes(tree, _parts(group, ties)))


def _read_functions(tree: Tree, addresses: Iterable[str]) -> dict[str, _Function]:
    """Read the functions and all bridges above them, each once."""
    paths = {address: tree.resolve(device_path(address)) for address in addresses}
    for path in list(paths.values()):
        for bridge in bridges_above(path):
            paths.setdefault(bridge, f"{path.partition(bridge)[0]}{bridge}")
    configs = bounded_reads.read_all(tree, [f"{device_path(address)}/config" for address in paths])
    return {
        address: _Function(
            address,
            maker=next(reversed(domain_makers(path)), None),
            has_place=path.startswith(SYS_DEVICES),
            above=bridges_above(path),
            config=answer if isinstance(answer := configs[f"{device_path(address)}/config"], bytes) else b"",
            has_group=tree.exists(f"{device_path(address)}/iommu_group"),
            is_vf=tree.exists(f"{device_path(address)}/physfn"),
        )
        for address, path in paths.items()
    }


def _domain_ties(tree: Tree, group: Sequence[str], functions: Mapping[str, _Function]) -> Iterable[_Tie]:
    """Yield the devices that share a group with the device that makes their PCI domain."""
    makers = dict.fromkeys(functions[address].maker for address in group)
    for maker in makers:
        if maker is None or maker not in group:
            continue
        devices = [address for address in group if functions[address].maker == maker]
        driver = tree.find_link(f"{device_path(maker)}/driver") or "no driver"
        yield _Tie(
            (maker, *devices),
            f"{', '.join(devices)}: in {domains_text(devices)}, which {maker} ({driver}) makes and whose DMA "
            "it issues under its own requester id",
        )


def _bridge_ties(group: Sequence[str], functions: Mapping[str, _Function]) -> Iterable[_Tie]:
    """Yield the bridges that tie the devices below them together, and to the bridge if it has a group."""
    below: dict[str, list[str]] = {}
    for address in group:
        for bridge in functions[address].above:
            below.setdefault(bridge, []).append(address)
    for bridge, devices in below.items():
        cause = _bridge_cause(functions[bridge])
        tied = (bridge, *devices) if bridge in group else tuple(devices)
        if cause is not None and len(tied) > 1 and (bridge in group or not functions[bridge].has_group):
            yield _Tie(tied, f"{', '.join(devices)}: behind {bridge}, {cause}")


def _bridge_cause(bridge: _Function) -> str | None:
    """Return how a bridge ties what is below it together, as ``pci_for_each_dma_alias()`` and ACS have it.

    ``None`` if it does not, or if its header is none of a bridge: then it has no bus below it.
    """
    if config_space.header_type(bridge.config) not in config_space.BRIDGE_HEADERS:
        return None
    kind = port_type(bridge.config)
    if kind == PortType.PCIE_TO_PCI:
        return "a PCIe-to-PCI bridge, which sends all requests of its bus under its own requester id"
    if kind is None or kind == PortType.PCI_TO_PCIE:
        return "a PCI bridge, whose bus does not show which device sent a request"
    flaw = bridge.weakness
    port = _PORTS.get(kind, f"a port of the unknown type {kind:#x}")
    return None if flaw is None else f"{port} {flaw}, which may route requests between devices"


def _slot_ties(group: Iterable[_Function]) -> Iterable[_Tie]:
    """Yield the functions of a device that lack ACS isolation; functions that have it are not tied."""
    slots: dict[str, dict[str, str]] = {}
    for function in group:
        if (flaw := function.weakness) is not None:
            slots.setdefault(function.slot, {})[function.address] = flaw
    for flaws in slots.values():
        if len(flaws) > 1:
            common = " or ".join(dict.fromkeys(flaws.values()))
            cause = f"functions of the same device {common}, which may send requests to each other"
            yield _Tie(tuple(flaws), f"{', '.join(flaws)}: {cause}")


def _parts(group: Sequence[str], ties: Iterable[_Tie]) -> list[set[str]]:
    """Split a group into the parts that no tie joins."""
    parts = [{address} for address in group]
    for tie in ties:
        touched = [part for part in parts if part.intersection(tie.devices)]
        parts = [part for part in parts if part not in touched] + [set().union(*touched)]
    return parts


def _other_causes(tree: Tree, parts: list[set[str]]) -> Iterable[str]:
    """Yield the likely cause for parts that no known tie joins."""
    if len(parts) < 2:
        return
    group = set().union(*parts)
    first = ", ".join(sorted(min(part) for part in parts))
    unit = tree.find_link(f"{device_path(min(group))}/iommu")
    members = set(tree.find_names(f"/sys/class/iommu/{unit}/devices")) if unit else set()
    if members and members <= group:
        yield f"{first}: their IOMMU, {unit}, puts all its devices in one group"
    elif len({address.rpartition(":")[0] for address in group}) == 1:
        quirk = "a quirk for their model, such as a DMA alias ('dmesg | grep alias')"
        yield f"{first}: {quirk}, or a rule of the IOMMU driver"
    else:
        yield f"{first}: a rule of the IOMMU driver, for no bridge and no missing ACS joins them"
