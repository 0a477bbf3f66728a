"""Where a device is: the port above it, its physical slot, and the names that the firmware gives it.

Sources: Documentation/ABI/testing/sysfs-bus-pci (``label``, ``index``, ``acpi_index``, and the ``address`` of
a slot), ``address_read_file()`` in drivers/pci/slot.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vfiotool.host.attribute_reader import AttributeReader
from vfiotool.host.attributes import device_path
from vfiotool.host.devices import PciDevice
from vfiotool.host.pci_domains import SYS_DEVICES, bridges_above, domain_makers
from vfiotool.host.tree import Tree

_SLOTS = "/sys/bus/pci/slots"


@dataclass(frozen=True, slots=True)
class Parent:
    """The bridge above a device: a port of PCI Express, or a PCI bridge. Names are those of ``PciDevice``."""

    address: str
    class_name: str | None
    vendor: str | None
    device: str | None


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of a device.

    ``parent`` is ``None`` on a root bus. ``domain_maker`` is the device that makes the PCI domain of this
    one, such as an Intel VMD. ``slot`` is the kernel's name of the physical slot. ``label`` and
    ``firmware_index`` are the firmware's name and number of the device (SMBIOS or ACPI), ``acpi_index`` is
    ACPI's number. A field that is unknown is ``None``, and named in ``unavailable``.
    """

    parent: Parent | None
    domain_maker: str | None
    slot: str | None
    label: str | None
    firmware_index: int | None
    acpi_index: int | None
    unavailable: tuple[str, ...]


def read_placement(tree: Tree, address: str, devices: Iterable[PciDevice]) -> Placement:
    """Read the place of a device; ``devices`` are all of the machine. The reads take no lock."""
    reader = AttributeReader(tree, device_path(address))
    path = tree.resolve(device_path(address))
    above, makers = bridges_above(path), domain_makers(path)
    label, index, acpi_index = reader.text("label"), reader.decimal("index"), reader.decimal("acpi_index")
    known = {
        "parent": path.startswith(SYS_DEVICES),
        "slot": tree.is_complete or tree.exists(_SLOTS),
        "label": label is not None or reader.lacks("label"),
        "firmware_index": index is not None or reader.lacks("index"),
        "acpi_index": acpi_index is not None or reader.lacks("acpi_index"),
    }
    return Placement(
        parent=_parent(above[0], devices) if above else None,
        domain_maker=makers[-1] if makers else None,
        slot=_slot(tree, address),
        label=label,
        firmware_index=index,
        acpi_index=acpi_index,
        unavailable=tuple(name for name, is_known in known.items() if not is_known),
    )


def _parent(address: str, devices: Iterable[PciDevice]) -> Parent:
    for one in devices:
        if one.address == address:
            return Parent(address, one.class_name, one.vendor, one.device)
    return Parent(address, None, None, None)


def _slot(tree: Tree, address: str) -> str | None:
    """Return the name of the slot with the device's address; a slot for any device of a bus has no number."""
    device = address.rpartition(".")[0]
    for name in sorted(_names(tree)):
        try:
            where = tree.find(f"{_SLOTS}/{name}/address")
        except OSError:
            continue
        if where in (device, device.rpartition(":")[0]):
            return name
    return None


def _names(tree: Tree) -> list[str]:
    try:
        return tree.find_names(_SLOTS)
    except OSError:
        return []
