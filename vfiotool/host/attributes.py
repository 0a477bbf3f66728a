"""The attributes of PCI devices, from sysfs (Documentation/ABI/testing/sysfs-bus-pci).

Only what ``vfiotool list`` needs: the import of this module is part of the time of a listing. There are no
dataclasses here for that reason; see ``vfiotool.host.devices``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from vfiotool.errors import VfioToolError
from vfiotool.host import bounded_reads, pending_unbinds
from vfiotool.host.tree import GONE, Tree, decode
from vfiotool.pci.address import is_full_address, sort_key
from vfiotool.pci.names import PciNames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
_GUARDED = ("driver_override", "sriov_numvfs", "reset_method")


def device_path(address: str) -> str:
    """Return the directory of a device in sysfs."""
    return f"{DEVICES}/{address}"


def find_group(tree: Tree, address: str) -> int | None:
    """Return the number of a device's IOMMU group, or ``None`` if the device has no group."""
    return _number_of(tree.find_link(f"{device_path(address)}/iommu_group"))


def addresses(tree: Tree) -> list[str]:
    """Return the addresses of all PCI devices, sorted; an empty list if the machine has no PCI bus."""
    return sorted(filter(is_full_address, tree.find_names(DEVICES)), key=sort_key)


def read_fields(
    tree: Tree, wanted: Iterable[str], names: PciNames, *, state_dir: str = pending_unbinds.STATE_DIR
) -> list[dict[str, Any]]:
    """Read the fields of ``Device``, by name, for the devices at these addresses, in the given order.

    A device that is unplugged meanwhile is left out. Blocked devices, however many, add about a second
    in total at most.

    Raises:
        VfioToolError: an attribute that every device has does not hold a number.
    """
    attributes = {}
    for address in wanted:
        try:
            attributes[address] = frozenset(tree.names(device_path(address)))
        except FileNotFoundError:
            continue
    guarded = bounded_reads.read_all(
        tree,
        [
            f"{device_path(address)}/{name}"
            for address, present in attributes.items()
            for name in _GUARDED
            if name in present
        ],
    )
    blocked = pending_unbinds.blocked_addresses(tree, state_dir)
    found = []
    for address, present in attributes.items():
        try:
            reader = _Reader(tree, device_path(address), present, guarded)
            found.append(_read_device(reader, address, names, blocked=address in blocked))
        except OSError as error:
            if error.errno not in GONE:
                raise
    return found


def parse_override(text: str | None) -> str | None:
    """Return the override, or ``None`` if none is set: the kernel then prints a null pointer."""
    return None if text == "(null)" else text


class _Reader:
    """Reads the attributes of one device, and records the names of the fields that cannot be read."""

    def __init__(
        self,
        tree: Tree,
        folder: str,
        present: frozenset[str],
        guarded: Mapping[str, bounded_reads.ReadResult],
    ) -> None:
        self._tree, self._folder = tree, folder
        self._guarded = guarded
        self.present = present
        self.unavailable: list[str] = []
        self.stalled = False

    def text(self, name: str, *, field: str = "") -> str | None:
        """Return the text of an attribute, or ``None`` if the attribute is absent or cannot be read."""
        if name not in self.present:
            return None
        try:
            return self._read(name)
        except TimeoutError:
            self.stalled = True
        except OSError as error:
            if error.errno in GONE and not self._tree.exists(self._folder):
                raise
        self.unavailable.append(field or name)
        return None

    def number(self, name: str) -> int | None:
        """Return the number in an attribute, in any base that the kernel writes."""
        text = self.text(name)
        try:
            return int(text, 0) if text is not None else None
        except ValueError:
            self.unavailable.append(name)
            return None

    def required(self, name: str) -> int:
        """Return a number that every PCI device has; reading it takes no lock."""
        text = self._tree.read(f"{self._folder}/{name}")
        try:
            return int(text, 0)
        except ValueError:
            raise VfioToolError(
                f"{self._folder}/{name} holds {text!r}, which is not a number",
                hint="check that --sysroot names a directory with a real sysfs",
            ) from None

    def link(self, name: str) -> str | None:
        return self._tree.find_link(f"{self._folder}/{name}")

    def names(self, name: str) -> list[str]:
        return self._tree.find_names(f"{self._folder}/{name}") if name in self.present else []

    def node(self, path: str) -> str | None:
        return path if self._tree.exists(path) else None

    def _read(self, name: str) -> str:
        path = f"{self._folder}/{name}"
        if path not in self._guarded:
            return self._tree.read(path)
        answer = self._guarded[path]
        if answer is None:
            raise TimeoutError(errno.ETIMEDOUT, name)
        if isinstance(answer, OSError):
            raise answer
        return decode(answer)


def _read_device(reader: _Reader, address: str, names: PciNames, *, blocked: bool) -> dict[str, Any]:
    vendor_id, device_id = reader.required("vendor"), reader.required("device")
    driver, physfn = reader.link("driver"), reader.link("physfn")
    fields = {
        "address": address,
        "vendor_id": vendor_id,
        "device_id": device_id,
        "subsystem_vendor_id": reader.required("subsystem_vendor"),
        "subsystem_device_id": reader.required("subsystem_device"),
        "revision": reader.required("revision"),
        "class_code": reader.required("class"),
        "vendor": names.vendor(vendor_id),
        "device": names.device(vendor_id, device_id),
        "driver": driver,
        "driver_override": parse_override(reader.text("driver_override")),
        "iommu_group": _number_of(reader.link("iommu_group")),
        "numa_node": reader.number("numa_node"),
        "is_vf": physfn is not None,
        "physfn": physfn,
        "vfs": _vfs(reader),
        "sriov_totalvfs": reader.number("sriov_totalvfs"),
        "sriov_numvfs": reader.number("sriov_numvfs"),
        "reset_methods": _reset_methods(reader),
        "power_state": _power_state(reader),
        "cdev": _cdev(reader),
    }
    fields["blocked"] = blocked or (reader.stalled and driver is None)
    fields["unavailable"] = tuple(reader.unavailable)
    return fields


def _number_of(group: str | None) -> int | None:
    return int(group) if group is not None and group.isdecimal() else None


def _vfs(reader: _Reader) -> tuple[str, ...]:
    links = [name for name in reader.present if name.startswith("virtfn") and name[6:].isdecimal()]
    links.sort(key=lambda name: int(name[6:]))
    return tuple(vf for vf in map(reader.link, links) if vf is not None)


def _reset_methods(reader: _Reader) -> tuple[str, ...] | None:
    """Kernels up to 5.14 show only that a reset method exists (``reset``), not which."""
    if "reset_method" in reader.present:
        text = reader.text("reset_method", field="reset_methods")
        return None if text is None else tuple(text.split())
    if "reset" in reader.present:
        reader.unavailable.append("reset_methods")
        return None
    return ()


def _power_state(reader: _Reader) -> str | None:
    """Old kernels lack the attribute. It reads ``unknown`` until a driver has bound to the device."""
    if "power_state" not in reader.present:
        reader.unavailable.append("power_state")
    return reader.text("power_state")


def _cdev(reader: _Reader) -> str | None:
    """Since 6.1 a device on a VFIO driver has a ``vfio-dev`` directory. The device node exists only with
    CONFIG_VFIO_DEVICE_CDEV (v6.6)."""
    for name in reader.names("vfio-dev"):
        if (node := reader.node(f"/dev/vfio/devices/{name}")) is not None:
            return node
    return None
