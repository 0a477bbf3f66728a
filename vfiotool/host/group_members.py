"""The devices of a group with what a person chooses by: class, ids, reset, NUMA node, USB devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vfiotool.host.attributes import device_path
from vfiotool.host.devices import PciDevice
from vfiotool.host.tree import Tree
from vfiotool.host.usb_devices import USB_CLASS, UsbDevice, read_usb_devices


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A device of a group. The ids, the class and the NUMA node are those of ``PciDevice``.

    ``can_be_reset`` is True if the kernel can reset the device alone. ``usb_devices`` are those below a USB
    controller, ``None`` for other devices. A field that is unknown is ``None``, and named in ``unavailable``.
    """

    address: str
    class_code: int | None
    vendor_id: int | None
    device_id: int | None
    revision: int | None
    numa_node: int | None
    can_be_reset: bool | None
    usb_devices: tuple[UsbDevice, ...] | None
    unavailable: tuple[str, ...]


def read_members(tree: Tree, devices: Iterable[PciDevice]) -> Mapping[str, GroupMember]:
    """Return these devices as members of their groups, by address."""
    known = list(devices)
    usb = read_usb_devices(tree, [one.address for one in known if _is_usb(one)])
    return {device.address: _member(tree, device, usb) for device in known}


def _member(tree: Tree, device: PciDevice, usb: Mapping[str, tuple[UsbDevice, ...]] | None) -> GroupMember:
    can_be_reset = _can_be_reset(tree, device)
    unknown = {"can_be_reset": can_be_reset is None, "usb_devices": _is_usb(device) and usb is None}
    shared = ("class_code", "vendor_id", "device_id", "revision", "numa_node")
    return GroupMember(
        address=device.address,
        class_code=device.class_code,
        vendor_id=device.vendor_id,
        device_id=device.device_id,
        revision=device.revision,
        numa_node=device.numa_node,
        can_be_reset=can_be_reset,
        usb_devices=usb.get(device.address) if usb is not None else None,
        unavailable=(
            *(name for name in shared if name in device.unavailable),
            *(name for name, is_unknown in unknown.items() if is_unknown),
        ),
    )


def _is_usb(device: PciDevice) -> bool:
    return device.class_code is not None and device.class_code >> 8 == USB_CLASS


def _can_be_reset(tree: Tree, device: PciDevice) -> bool | None:
    """Return True if the device has the file ``reset``: each kernel shows it only if a reset is possible."""
    if device.reset_methods or tree.exists(f"{device_path(device.address)}/reset"):
        return True
    return False if tree.is_complete else None
