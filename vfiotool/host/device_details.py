"""The fields of ``vfiotool show`` beyond those of ``list``: capabilities, BARs, link, place, users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vfiotool.host import bounded_reads
from vfiotool.host.attribute_reader import AttributeReader, to_decimal
from vfiotool.host.attributes import answers, device_path
from vfiotool.host.bars import Bar, read_bars
from vfiotool.host.config_space import is_whole, shown_part
from vfiotool.host.devices import PciDevice
from vfiotool.host.driver_ids import candidate_modules
from vfiotool.host.groups import IommuGroup, read_group, with_members
from vfiotool.host.link import ATTRIBUTES, downgraded, is_linkless, link_of
from vfiotool.host.placement import Placement, read_placement
from vfiotool.host.power import Power, power_of, power_paths
from vfiotool.host.tree import Tree, decode
from vfiotool.host.usage.device_usage import Usage, read_usage
from vfiotool.host.usage.sight import unseen_uses
from vfiotool.host.variant_drivers import modalias
from vfiotool.pci.config_space import Capability, capabilities


@dataclass(frozen=True, slots=True)
class Details:
    """A device with its capabilities, BARs and users.

    ``capabilities`` is ``None``, and named in ``unavailable``, if configuration space could not be read in
    full, which needs root, or if nothing answers. ``link`` maps the kernel's attribute names to their text,
    and is empty without PCI Express; ``link_downgraded`` names what is below the maximum: ``speed``,
    ``width``. ``modules`` are the modules of the kernel that declare the device's ids. ``irq`` is the number
    of the interrupt line, ``msi_irqs`` are those of MSI and MSI-X. ``usage`` is named in
    ``unavailable`` if ``unseen_uses`` says that files are missing that would show more; it is ``None`` if
    then none is in sight.
    """

    device: PciDevice
    group: IommuGroup | None
    capabilities: tuple[Capability, ...] | None
    bars: tuple[Bar, ...]
    link: Mapping[str, str]
    link_downgraded: tuple[str, ...] | None
    modules: tuple[str, ...] | None
    irq: int | None
    msi_irqs: tuple[int, ...] | None
    placement: Placement
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
    paths = [*power_paths(device.address), *(f"{folder}/{name}" for name in ("config", *ATTRIBUTES))]
    guarded = bounded_reads.read_all(tree, paths)
    config = shown_part(guarded[f"{folder}/config"])
    device = _with_answer(device, config)
    attributes = {
        name: decode(answer)
        for name in ATTRIBUTES
        if isinstance(answer := guarded[f"{folder}/{name}"], bytes)
    }
    link = link_of(attributes, config)
    below = downgraded(link, config)
    lacks_link = tree.is_complete and not any(tree.exists(f"{folder}/{name}") for name in ATTRIBUTES)
    reader = AttributeReader(tree, folder)
    irq, msi_irqs = reader.decimal("irq"), _msi_irqs(reader)
    modules = candidate_modules(tree, modalias(device))
    iommu = tree.find_link(f"{folder}/iommu")
    usage = read_usage(tree, [device.address], [group] if group else [])[device.address]
    unseen = unseen_uses(tree)
    known = {
        "group": "iommu_group" not in device.unavailable,
        "capabilities": is_whole(config),
        "bars": tree.exists(f"{folder}/resource"),
        "link": bool(link) or lacks_link or is_linkless(config),
        "link_downgraded": below is not None,
        "modules": modules is not None,
        "irq": irq is not None,
        "msi_irqs": msi_irqs is not None,
        "iommu": iommu is not None or tree.is_complete,
        "usage": not unseen,
    }
    return Details(
        device=device,
        group=group,
        capabilities=capabilities(config) if is_whole(config) else None,
        bars=read_bars(tree, device.address, config if device.answers and device.is_vf is False else b""),
        link=link,
        link_downgraded=below,
        modules=None if modules is None else tuple(modules),
        irq=irq or None,
        msi_irqs=msi_irqs,
        placement=read_placement(tree, device.address, present),
        iommu=iommu,
        power=power_of(tree, device.address, guarded),
        usage=None if unseen and not usage else usage,
        unseen_uses=unseen,
        unavailable=tuple(name for name, is_known in known.items() if not is_known),
    )


def _msi_irqs(reader: AttributeReader) -> tuple[int, ...] | None:
    """Return the numbers of the interrupts of MSI and MSI-X; none if the folder is not there."""
    names = reader.names("msi_irqs") if "msi_irqs" in reader.present or reader.lacks("msi_irqs") else None
    return (
        None if names is None else tuple(sorted(int(name) for name in names if to_decimal(name) is not None))
    )


def _with_answer(device: PciDevice, config: bytes) -> PciDevice:
    """Return the device with what its registers say: a listing does not wake a device to read them."""
    answer = answers(config)
    if answer is None:
        return device
    unavailable = tuple(name for name in device.unavailable if name != "answers")
    return replace(device, answers=answer, unavailable=unavailable)
