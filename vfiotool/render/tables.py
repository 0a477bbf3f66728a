"""Devices, groups and the details of a device as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vfiotool.host.device_details import Details
from vfiotool.host.devices import PciDevice
from vfiotool.host.direct_regions import direct_note
from vfiotool.host.groups import IommuGroup
from vfiotool.pci.ids import FOR_ROOT, hex_text, ids_text, name_text, silence_text
from vfiotool.render.terminal import print_facts, print_table, print_text, print_title

_NONE = "-"
_NOTE_INDENT = 4
_VIABLE = {True: "yes", False: "no", None: "?"}


def print_devices(devices: Sequence[PciDevice]) -> None:
    """Print a table with a line for each device."""
    rows = []
    for device in devices:
        ids = ids_text(device.vendor_id, device.device_id)
        rows.append((device.address, ids, _text(device.iommu_group), _driver(device), _name(device)))
    print_table(("ADDRESS", "ID", "GROUP", "DRIVER", "DEVICE"), rows)
    for device in devices:
        if device.answers is False:
            print_text(silence_text(device.address))


def print_groups(groups: Sequence[IommuGroup], devices: Iterable[PciDevice]) -> None:
    """Print each group with its devices, blockers and holders."""
    by_address = {device.address: device for device in devices}
    rows, notes = [], []
    for group in groups:
        columns = [str(group.id), group.type or _NONE, _VIABLE[group.viable]]
        for address in group.devices:
            device = by_address.get(address)
            if device is not None:
                rows.append((*columns, address, _driver(device), _name(device)))
                columns = ["", "", ""]
        if len(group.devices) > 1 or group.holders or group.direct_regions:
            notes += [f"group {group.id}: {line}" for line in group_notes(group)]
    print_table(("GROUP", "TYPE", "VIABLE", "ADDRESS", "DRIVER", "DEVICE"), rows)
    for note in notes:
        print_text(note, hanging=_NOTE_INDENT)
    if any(group.blockers for group in groups):
        print_text("'vfiotool show ADDRESS' says how to free a device")


def group_notes(group: IommuGroup) -> list[str]:
    """Return notes on a group: what its devices share, what keeps it from VFIO, and its holders."""
    why = ("run as root to see why",) if group.why is None else group.why
    notes = [f"shared: {line}" for line in why]
    notes += filter(None, [direct_note(group)])
    notes += [f"not viable because of {blocker.address}: {blocker.reason}" for blocker in group.blockers]
    notes += [f"held: {holder.node} by {holder.process}, fd {holder.fd}" for holder in group.holders]
    return notes


def print_details(details: Details, how_to_free: str) -> None:
    """Print all details of a device; ``how_to_free`` is the text of its last line."""
    print_title(f"{details.device.address} {_name(details.device)}")
    print_facts((*_facts(details), ("how to free", how_to_free)))


def _facts(details: Details) -> Iterable[tuple[str, str]]:
    device = details.device
    ids = ids_text(device.vendor_id, device.device_id)
    yield "id", f"{ids} rev {hex_text(device.revision, 2)}, class {hex_text(device.class_code, 6)}"
    yield "subsystem", ids_text(device.subsystem_vendor_id, device.subsystem_device_id)
    yield "driver", _text(device.driver)
    yield "override", _text(device.driver_override)
    yield "power", str(details.power)
    yield "resets", _list(device.reset_methods)
    yield "numa node", _text(device.numa_node)
    if device.sriov_totalvfs:
        yield "vfs", f"{_text(device.sriov_numvfs)} of {device.sriov_totalvfs}: {_list(device.vfs)}"
    if device.physfn:
        yield "vf of", device.physfn
    if details.link:
        link = details.link
        now = f"{link.get('current_link_speed', '?')} x{link.get('current_link_width', '?')}"
        most = f"{link.get('max_link_speed', '?')} x{link.get('max_link_width', '?')}"
        yield "link", f"{now}, at most {most}"
    yield from _group_facts(details)
    for bar in details.bars:
        prefetch = ", prefetchable" if bar.prefetchable else ""
        yield f"bar {bar.index}", f"{bar.start:#x}, {bar.size:#x} bytes, {bar.type}{prefetch}"
    for capability in details.capabilities or ():
        kind = "extended" if capability.extended else "standard"
        yield (
            f"cap {capability.offset:#05x}",
            f"{capability.name} ({kind}, id {capability.id:#04x})",
        )
    for usage in details.usage or ():
        yield usage.kind, f"{usage.name}: {usage.detail}"
    if details.unseen_uses:
        yield "uses", f"not all in sight: {', '.join(details.unseen_uses)}"
    if device.blocked:
        yield "blocked", "an unbind is pending until a process releases the device"
    if device.answers is False:
        yield "registers", silence_text(device.address)
    elif details.capabilities is None:
        why = FOR_ROOT if device.answers else "configuration space cannot be read"
        yield "capabilities", f"unknown: {why}"
    if unavailable := dict.fromkeys([*device.unavailable, *details.unavailable]):
        yield "unavailable", ", ".join(unavailable)


def _group_facts(details: Details) -> Iterable[tuple[str, str]]:
    group = details.group
    if group is None and "iommu_group" in details.device.unavailable:
        yield "iommu group", "unknown"
        return
    if group is None:
        yield "iommu group", f"{_NONE} (the IOMMU is disabled, or does not cover this device)"
        return
    viable = {True: "viable", False: "not viable", None: "viability unknown"}[group.viable]
    yield (
        "iommu group",
        f"{group.id} ({viable}, type {group.type or _NONE}, {_text(details.iommu)})",
    )
    yield "group has", _list(group.devices)
    for note in group_notes(group):
        yield "", note


def _driver(device: PciDevice) -> str:
    return "blocked" if device.blocked else _text(device.driver)


def _name(device: PciDevice) -> str:
    return name_text(device.vendor, device.device)


def _text(value: str | int | None) -> str:
    return _NONE if value is None else str(value)


def _list(values: Sequence[str] | None) -> str:
    return " ".join(values) if values else _NONE
