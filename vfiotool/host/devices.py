"""PCI devices, as frozen snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vfiotool.errors import DeviceNotFoundError
from vfiotool.host.attributes import read_fields
from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI function at one moment.

    ``class_code`` has 24 bits. A field that could not be read, because of permissions or a timeout, because
    the kernel does not have it or a copy of the machine's files left it out, is ``None`` and named in
    ``unavailable``. A field that is ``None`` and not named there does not exist on this device. ``blocked``
    is True if an unbind is pending: the driver waits for a process to close the device. ``answers`` is False
    if the registers of the device read as ones; it is unknown of a device that sleeps, which is not woken.
    """

    address: str
    vendor_id: int | None
    device_id: int | None
    subsystem_vendor_id: int | None
    subsystem_device_id: int | None
    revision: int | None
    class_code: int | None
    vendor: str | None
    device: str | None
    class_name: str | None
    interface_name: str | None
    subsystem_vendor: str | None
    subsystem_device: str | None
    driver: str | None
    driver_override: str | None
    iommu_group: int | None
    numa_node: int | None
    is_vf: bool | None
    physfn: str | None
    vfs: tuple[str, ...]
    sriov_totalvfs: int | None
    sriov_numvfs: int | None
    reset_methods: tuple[str, ...] | None
    power_state: str | None
    answers: bool | None
    cdev: str | None
    blocked: bool
    unavailable: tuple[str, ...]


def read_devices(
    tree: Tree, wanted: Iterable[str], names: PciNames, *, state_dir: str = STATE_DIR
) -> list[PciDevice]:
    """Read the devices at these addresses, in the given order: see ``attributes.read_fields``."""
    return [PciDevice(**fields) for fields in read_fields(tree, wanted, names, state_dir=state_dir)]


def find_device(devices: Iterable[PciDevice], address: str) -> PciDevice:
    """Return the device at an address.

    Raises:
        DeviceNotFoundError: ``devices`` has no device at this address.
    """
    for device in devices:
        if device.address == address:
            return device
    raise DeviceNotFoundError(
        f"there is no PCI device at {address}", hint="'vfiotool list' shows all devices"
    )
