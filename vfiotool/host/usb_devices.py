"""The USB devices below a controller, from sysfs (Documentation/ABI/stable/sysfs-bus-usb)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vfiotool.host import bounded_reads
from vfiotool.host.attribute_reader import AttributeReader
from vfiotool.host.pci_domains import functions
from vfiotool.host.tree import Tree

USB_CLASS = 0x0C03
_DEVICES = "/sys/bus/usb/devices"
_DEVICE = re.compile(r"[0-9]+-[0-9.]+")  # neither a root hub (usb1) nor an interface (1-2:1.0)
_IDS = ("idVendor", "idProduct")
_TEXTS = ("manufacturer", "product")
_NUMBERS = ("busnum", "devnum")


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """A USB device, by the numbers of its bus and its own; ``name`` is of its own descriptors.

    A field that cannot be read is ``None``; many devices have no name.
    """

    bus: int | None
    device: int | None
    vendor_id: int | None
    product_id: int | None
    name: str | None


def read_usb_devices(tree: Tree, controllers: Collection[str]) -> Mapping[str, tuple[UsbDevice, ...]] | None:
    """Return the USB devices below each of these PCI devices, without root hubs; ``None`` if out of sight."""
    if not controllers:
        return {}
    if not tree.is_complete and not tree.exists(_DEVICES):
        return None
    names = sorted(filter(_DEVICE.fullmatch, tree.find_names(_DEVICES)))
    places = {name: functions(tree.resolve(f"{_DEVICES}/{name}")) for name in names}
    below = {name: place[-1] for name, place in places.items() if place and place[-1] in controllers}
    readers = {name: AttributeReader(tree, f"{_DEVICES}/{name}") for name in below}
    # The texts are behind the lock of the USB device (usb_string_attr() in drivers/usb/core/sysfs.c).
    paths = [reader.path(text) for reader in readers.values() for text in _TEXTS if text in reader.present]
    guarded = bounded_reads.read_all(tree, paths)
    found: dict[str, list[UsbDevice]] = {controller: [] for controller in controllers}
    for name, reader in readers.items():
        reader.use(guarded)
        found[below[name]].append(_read(reader))
    return {
        address: tuple(sorted(devices, key=lambda one: (one.bus or 0, one.device or 0)))
        for address, devices in found.items()
    }


def _read(reader: AttributeReader) -> UsbDevice:
    bus, device = map(reader.decimal, _NUMBERS)
    vendor, product = (_id(reader.text(name)) for name in _IDS)
    words = [text.strip() for name in _TEXTS if (text := reader.text(name)) is not None]
    return UsbDevice(bus, device, vendor, product, " ".join(filter(None, words)) or None)


def _id(text: str | None) -> int | None:
    """Return the number in four hexadecimal digits, as USB's ids are written, or ``None``."""
    return int(text, 16) if text is not None and re.fullmatch("[0-9a-f]{4}", text) else None
