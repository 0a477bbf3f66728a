"""The attributes of PCI devices, from sysfs (Documentation/ABI/testing/sysfs-bus-pci).

Only what ``vfiotool list`` needs: the import of this module is part of the time of a listing. There are no
dataclasses here for that reason; see ``vfiotool.host.devices``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vfiotool.host import bounded_reads, pending_unbinds
from vfiotool.host.attribute_reader import AttributeReader, to_decimal, to_hexadecimal
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_full_address, sort_key
from vfiotool.pci.identity import HEADER_SIZE, is_silent, read_identity
from vfiotool.pci.ids import name_text
from vfiotool.pci.names import PciNames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
_LOCKED = ("driver_override", "sriov_numvfs", "reset_method")
GROUPS = "/sys/kernel/iommu_groups"
VFIO_NODES = "/dev/vfio"

# Field -> the attribute, and its hexadecimal digits (pci-sysfs.c).
_IDENTITY = {
    "vendor_id": ("vendor", 4),
    "device_id": ("device", 4),
    "subsystem_vendor_id": ("subsystem_vendor", 4),
    "subsystem_device_id": ("subsystem_device", 4),
    "revision": ("revision", 2),  # since Linux 4.10
    "class_code": ("class", 6),
}
_ONES = b"\xff" * 4
_ASLEEP = ("D1", "D2", "D3hot", "D3cold")


def device_path(address: str) -> str:
    """Return the directory of a device in sysfs."""
    return f"{DEVICES}/{address}"


def find_group(tree: Tree, address: str) -> int | None:
    """Return the number of a device's IOMMU group, or ``None`` if the device has no group."""
    return _number_of(tree.find_link(f"{device_path(address)}/iommu_group"))


def read_id(tree: Tree, address: str, attribute: str) -> int | None:
    """Return the id in ``vendor`` or ``device``, or the ``class``, of a device; ``None`` if it is unknown.

    The read takes no lock.
    """
    try:
        text = tree.find(f"{device_path(address)}/{attribute}")
    except OSError:
        return None
    return to_hexadecimal(text, digits=6 if attribute == "class" else 4)


def read_name(tree: Tree, address: str, names: PciNames) -> str:
    """Return the names of a device's vendor and model, by its ids. The read takes no lock."""
    ids = read_id(tree, address, "vendor"), read_id(tree, address, "device")
    return name_text(*_names(names, *ids))


def addresses(tree: Tree) -> list[str]:
    """Return the addresses of all PCI devices, sorted; an empty list if the machine has no PCI bus."""
    return sorted(filter(is_full_address, tree.find_names(DEVICES)), key=sort_key)


def read_fields(
    tree: Tree, wanted: Iterable[str], names: PciNames, *, state_dir: str = pending_unbinds.STATE_DIR
) -> list[dict[str, Any]]:
    """Read the fields of ``PciDevice``, by name, for the devices at these addresses, in the given order.

    A device that is unplugged meanwhile is left out: its entry among the devices is gone. A field that cannot
    be read is ``None``, and named in ``unavailable``. Blocked devices, however many, add about a second in
    total at most. The first register of a device is read too, but not if the device sleeps.
    """
    readers = {address: AttributeReader(tree, device_path(address)) for address in wanted}
    power = {address: reader.text("power_state") for address, reader in readers.items()}
    ids = {address: _attributes(reader) for address, reader in readers.items()}
    headers = {
        reader.path("config"): _wanted_part(reader, ids[address])
        for address, reader in readers.items()
        if "config" in reader.present
        and (None in ids[address].values() or _is_awake(tree, reader, power[address]))
    }
    guarded = _read_guarded(tree, readers.values(), headers)
    blocked = pending_unbinds.blocked_addresses(tree, state_dir)
    unseen = _unseen_links(tree)
    found = []
    for address, reader in readers.items():
        reader.use(guarded)
        is_stalled = any(guarded.get(reader.path(name), b"") is None for name in _LOCKED)
        header = (reader.content("config") if reader.path("config") in guarded else None) or b""
        fields = {"address": address, **_identity(reader, ids[address], names, header)}
        fields |= _state(tree, reader, unseen)
        fields["power_state"] = reader.known("power_state", power[address])
        fields["answers"] = reader.known("answers", answers(header))
        fields["blocked"] = address in blocked or (is_stalled and fields["driver"] is None)
        fields["unavailable"] = tuple(reader.unavailable)
        if tree.exists(device_path(address)):
            found.append(fields)
    return found


def _read_guarded(
    tree: Tree, readers: Iterable[AttributeReader], headers: Mapping[str, int]
) -> Mapping[str, bounded_reads.ReadResult]:
    """Read the attributes that need the device's lock, and so many bytes of the ``headers``, by path.

    A register that is ones says little: then the whole header is read.
    """
    locked = [reader.path(name) for reader in readers for name in _LOCKED if name in reader.present]
    found = dict(bounded_reads.read_all(tree, [*locked, *headers], most=headers))
    if unsure := {path: HEADER_SIZE for path in headers if found[path] == _ONES}:
        found |= bounded_reads.read_all(tree, list(unsure), most=unsure)
    return found


def answers(config: bytes) -> bool | None:
    """Return False if the registers of a device read as ones, ``None`` if they could not be read.

    A first register that is not ones is enough: it has the ids, which are ones of a VF alone.
    """
    if len(config) >= len(_ONES) and not config.startswith(_ONES):
        return True
    return None if len(config) < HEADER_SIZE else not is_silent(config)


def parse_override(text: str | None) -> str | None:
    """Return the override, or ``None`` if none is set: the kernel then prints a null pointer."""
    return None if text == "(null)" else text


def _attributes(reader: AttributeReader) -> dict[str, int | None]:
    """Return the ids, the class and the revision from their attributes; the reads take no lock."""
    return {field: reader.hexadecimal(name, digits) for field, (name, digits) in _IDENTITY.items()}


def _is_awake(tree: Tree, reader: AttributeReader, power_state: str | None) -> bool:
    """Return True if a read of configuration space wakes nothing.

    For a read the kernel wakes the bridges above a device, and a device in D3cold itself
    (``pci_config_pm_runtime_get()``).
    """
    if not tree.is_complete:  # a copy, in which nothing can wake
        return True
    return (power_state or reader.text("power/runtime_status")) not in (*_ASLEEP, "suspended")


def _wanted_part(reader: AttributeReader, ids: Mapping[str, int | None]) -> int:
    """Return how many bytes of the registers are needed: in a virtual machine each register takes long."""
    is_enough = None not in ids.values() and "physfn" not in reader.present
    return len(_ONES) if is_enough else HEADER_SIZE


def _identity(
    reader: AttributeReader, ids: Mapping[str, int | None], names: PciNames, header: bytes
) -> dict[str, Any]:
    """Return the ids, the class and the revision from their attributes, else from the device's registers."""
    registers = read_identity(header)
    found = {
        field: reader.known(field, registers.get(field) if number is None else number)
        for field, number in ids.items()
    }
    vendor, device = _names(names, found["vendor_id"], found["device_id"])
    found |= {"vendor": reader.known("vendor", vendor), "device": reader.known("device", device)}
    code = found["class_code"]
    found["class_name"] = reader.known("class_name", None if code is None else names.pci_class(code))
    found["interface_name"] = None if code is None else names.interface(code)
    if code is None:
        reader.note("interface_name")
    return found | _subsystem_names(reader, names, found)


def _subsystem_names(
    reader: AttributeReader, names: PciNames, found: Mapping[str, Any]
) -> dict[str, str | None]:
    """Return the names of the subsystem; ``None`` if it is unknown, or if the device has none: zeros."""
    vendor = device = None
    number, model = found["subsystem_vendor_id"], found["subsystem_device_id"]
    if number != 0:
        vendor = reader.known("subsystem_vendor", None if number is None else names.vendor(number))
        ids = (found["vendor_id"], found["device_id"])
        is_known = None not in (*ids, number, model)
        device = reader.known("subsystem_device", names.subsystem(ids, (number, model)) if is_known else None)
    return {"subsystem_vendor": vendor, "subsystem_device": device}


def _names(names: PciNames, vendor: int | None, device: int | None) -> tuple[str | None, str | None]:
    """Return the names of a vendor and its model; ``None`` without the id."""
    if vendor is None:
        return None, None
    return names.vendor(vendor), None if device is None else names.device(vendor, device)


def _state(tree: Tree, reader: AttributeReader, unseen: frozenset[str]) -> dict[str, Any]:
    """Return the fields of the device's state; ``unseen`` are the links that a copy cannot show."""
    physfn = reader.link("physfn", "physfn")
    fields = {
        "driver": reader.link("driver", "driver"),
        "driver_override": parse_override(reader.known("driver_override", reader.text("driver_override"))),
        "iommu_group": _group(reader),
        "numa_node": reader.known("numa_node", reader.decimal("numa_node")),
        "is_vf": reader.known("is_vf", None if "physfn" in reader.unavailable else physfn is not None),
        "physfn": physfn,
        "vfs": _vfs(reader),
        "sriov_totalvfs": _vf_count(reader, "sriov_totalvfs"),
        "sriov_numvfs": _vf_count(reader, "sriov_numvfs"),
        "reset_methods": reader.known("reset_methods", _reset_methods(reader)),
        "cdev": _cdev(tree, reader),
    }
    for field in unseen:
        if fields[field] is None:
            reader.note(field)
    return fields


def _unseen_links(tree: Tree) -> frozenset[str]:
    """Return the fields of links that a copy left out, as it lacks the folder of their targets, too."""
    folders = {} if tree.is_complete else {"driver": DRIVERS, "iommu_group": GROUPS}
    return frozenset(field for field, folder in folders.items() if not tree.exists(folder))


def _group(reader: AttributeReader) -> int | None:
    link = reader.link("iommu_group", "iommu_group")
    number = _number_of(link)
    if link is not None and number is None:
        reader.note("iommu_group")
    return number


def _number_of(group: str | None) -> int | None:
    number = to_decimal(group)
    return None if number is None or number < 0 else number


def _vfs(reader: AttributeReader) -> tuple[str, ...]:
    if not reader.is_listed:
        reader.note("vfs")
    links = [name for name in reader.present if name[:6] == "virtfn" and to_decimal(name[6:]) is not None]
    links.sort(key=lambda name: int(name[6:]))
    return tuple(vf for name in links if (vf := reader.link(name, "vfs")) is not None)


def _vf_count(reader: AttributeReader, name: str) -> int | None:
    """Return a number of VFs; only a PF has the attributes."""
    count = reader.decimal(name)
    is_pf = not reader.present.isdisjoint(("sriov_totalvfs", "sriov_numvfs"))
    if count is None and (is_pf or not reader.is_listed):
        reader.note(name)
    return count


def _reset_methods(reader: AttributeReader) -> tuple[str, ...] | None:
    """Kernels up to 5.14 show only that a reset method exists (``reset``), not which."""
    if reader.lacks("reset_method", "reset"):
        return ()
    return reader.words("reset_method")


def _cdev(tree: Tree, reader: AttributeReader) -> str | None:
    """Since 6.1 a device on a VFIO driver has a ``vfio-dev`` directory. The device node exists only with
    CONFIG_VFIO_DEVICE_CDEV (v6.6)."""
    names = reader.names("vfio-dev")
    for name in names or ():
        node = f"{VFIO_NODES}/devices/{name}"
        if tree.exists(node):
            return node
    if names is None or (names and not tree.is_complete and not tree.exists(VFIO_NODES)):
        reader.note("cdev")
    return None
