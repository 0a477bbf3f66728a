"""Devices, groups and the details of a device as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vfiotool.host.bars import ROM, Bar
from vfiotool.host.device_details import Details
from vfiotool.host.devices import PciDevice
from vfiotool.host.direct_regions import direct_note
from vfiotool.host.group_members import GroupMember
from vfiotool.host.groups import IommuGroup, ReservedRegion
from vfiotool.host.placement import Placement
from vfiotool.pci.ids import FOR_ROOT, hex_text, ids_text, name_text, silence_text
from vfiotool.render.formats import ranges_text, size_text
from vfiotool.render.terminal import print_facts, print_table, print_text, print_title, whole

_NONE = "-"
_NOTE_INDENT = 4
_RESET = {True: "yes", False: _NONE, None: "?"}
_VIABLE = {True: "yes", False: "no", None: "?"}


def print_devices(devices: Sequence[PciDevice]) -> None:
    """Print a table with a line for each device."""
    rows = []
    for device in devices:
        ids = ids_text(device.vendor_id, device.device_id)
        group = _of(device, "iommu_group")
        rows.append((device.address, ids, group, _driver(device), _titled(device)))
    print_table(("ADDRESS", "ID", "GROUP", "DRIVER", "DEVICE"), rows)
    for device in devices:
        if device.answers is False:
            print_text(silence_text(device.address))


def print_groups(groups: Sequence[IommuGroup], devices: Iterable[PciDevice]) -> None:
    """Print each group with its devices, then reserved regions, USB devices, blockers and holders."""
    by_address = {device.address: device for device in devices}
    rows, notes = [], []
    for group in groups:
        columns = [str(group.id), group.type or _NONE, _VIABLE[group.viable]]
        members = {member.address: member for member in group.members}
        for address in group.devices:
            device = by_address.get(address)
            if device is not None:
                marks = (_RESET[members[address].can_be_reset] if address in members else "", _node(device))
                rows.append((*columns, address, *marks, _driver(device), _identified(device)))
                columns = ["", "", ""]
        lines = [*_member_notes(group.members), *_region_notes(group.reserved_regions or ())]
        if len(group.devices) > 1 or group.holders or group.direct_regions:
            lines = group_notes(group) + lines
        notes += [f"group {group.id}: {line}" for line in lines]
    print_table(("GROUP", "TYPE", "VIABLE", "ADDRESS", "RESET", "NODE", "DRIVER", "DEVICE"), rows)
    for note in notes:
        print_text(note, hanging=_NOTE_INDENT)
    if any(group.blockers for group in groups):
        print_text("'vfiotool show ADDRESS' says how to free a device")


def _member_notes(members: Iterable[GroupMember]) -> Iterable[str]:
    """Yield a line for each USB device below a controller of a group: its ids and its name."""
    for member in members:
        for usb in member.usb_devices or ():
            where = f"bus {_text(usb.bus)} device {_text(usb.device)}"
            ids = ids_text(usb.vendor_id, usb.product_id)
            yield f"usb below {member.address}: {whole(where)}: {ids} {usb.name or ''}".rstrip()


def _region_notes(regions: Iterable[ReservedRegion]) -> Iterable[str]:
    """Yield a line for each kind of reserved region. Every group has that of MSI; ``direct`` has a note."""
    kinds: dict[str, list[str]] = {}
    for region in regions:
        if region.type not in ("msi", "direct"):
            kinds.setdefault(region.type, []).append(f"{region.start:#x}-{region.end:#x}")
    for kind, ranges in kinds.items():
        yield f"reserved ({kind}): {' '.join(ranges)}"


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
    print_title(f"{details.device.address} {_titled(details.device)}")
    print_facts((*_facts(details), ("how to free", how_to_free)))


def _facts(details: Details) -> Iterable[tuple[str, str]]:
    device = details.device
    yield from _identity_facts(device)
    yield "driver", _of(device, "driver")
    if details.modules is not None:
        yield "modules", _list(details.modules)
    if device.driver_override is not None:
        yield "override", device.driver_override
    yield from _place_facts(details.placement)
    yield "numa node", _node(device)
    yield "power", str(details.power)
    yield "resets", "?" if device.reset_methods is None else _list(device.reset_methods)
    if details.irq is not None or details.msi_irqs is not None:
        yield "irq", _irq(details)
    if details.link:
        yield "link", _link(details)
    if device.sriov_totalvfs:
        yield "vfs", f"{_text(device.sriov_numvfs)} of {device.sriov_totalvfs}: {_list(device.vfs)}"
    if device.physfn:
        yield "vf of", device.physfn
    yield from _group_facts(details)
    for bar in details.bars:
        yield "rom" if bar.index == ROM else f"bar {bar.index}", _bar(bar)
    for capability in details.capabilities or ():
        kind = "extended" if capability.extended else "standard"
        yield (
            f"cap {capability.offset:#05x}",
            f"{capability.name} ({kind}, {whole(f'id {capability.id:#04x}')})",
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
    unavailable = [*device.unavailable, *details.unavailable, *details.placement.unavailable]
    if unavailable:
        yield "unavailable", ", ".join(dict.fromkeys(unavailable))


def _identity_facts(device: PciDevice) -> Iterable[tuple[str, str]]:
    yield "id", f"{ids_text(device.vendor_id, device.device_id)} {_revision(device)}"
    interface = f", {device.interface_name}" if device.interface_name else ""
    yield "class", f"{hex_text(device.class_code, 6)} {device.class_name or ''}{interface}".rstrip()
    if device.subsystem_vendor_id != 0:
        names = [name for name in (device.subsystem_vendor, device.subsystem_device) if name]
        ids = ids_text(device.subsystem_vendor_id, device.subsystem_device_id)
        yield "subsystem", " ".join((ids, *names))


def _place_facts(place: Placement) -> Iterable[tuple[str, str]]:
    if place.parent is not None:
        one = place.parent
        yield "behind", f"{one.address} {one.class_name or 'bridge'}: {name_text(one.vendor, one.device)}"
    if place.domain_maker is not None:
        yield "domain", f"made by {place.domain_maker}"
    if place.slot is not None:
        yield "slot", place.slot
    numbers = (("index", place.firmware_index), ("ACPI index", place.acpi_index))
    marks = [] if place.label is None else [place.label]
    marks += [whole(f"{name} {number}") for name, number in numbers if number is not None]
    if marks:
        yield "firmware", ", ".join(marks)


def _irq(details: Details) -> str:
    if details.msi_irqs:
        return f"{ranges_text(details.msi_irqs)} (MSI)"
    return _text(details.irq) if details.irq is not None or "irq" not in details.unavailable else "?"


def _link(details: Details) -> str:
    """Return the speed and the width of a link, each beside what the device can do."""
    link, below = details.link, details.link_downgraded or ()
    parts = []
    for part, sign in (("speed", ""), ("width", "x")):
        now = whole(f"{sign}{link.get(f'current_link_{part}', '?')}")
        parts.append(f"{now} (downgraded)" if part in below else now)
    most = f"{link.get('max_link_speed', '?')} x{link.get('max_link_width', '?')}"
    return f"{' '.join(parts)}, at most {whole(most)}"


def _bar(bar: Bar) -> str:
    """Return the address, the size and the kind of a range, and whether the device answers there."""
    marks = [f"{bar.start:#x}" if bar.start else "without an address", size_text(bar.size)]
    marks += ["[disabled]"] if bar.disabled else []
    kind = "" if bar.index == ROM else f", {bar.type}"
    return " ".join(marks) + kind + (", prefetchable" if bar.prefetchable else "")


def _group_facts(details: Details) -> Iterable[tuple[str, str]]:
    group = details.group
    if group is None and "iommu_group" in details.device.unavailable:
        yield "iommu group", "unknown"
        return
    if group is None:
        yield "iommu group", f"{_NONE} (the IOMMU is disabled, or does not cover this device)"
        return
    viable = {True: "viable", False: "not viable", None: "viability unknown"}[group.viable]
    unit = f", {details.iommu}" if details.iommu else ""
    yield "iommu group", f"{group.id} ({viable}, type {group.type or _NONE}{unit})"
    yield "group has", _list(group.devices)
    for note in group_notes(group):
        yield "", note


def _driver(device: PciDevice) -> str:
    return "blocked" if device.blocked else _of(device, "driver")


def _of(device: PciDevice, field: str) -> str:
    """Return a field as text: a dash if there is nothing, a question mark if that is unknown."""
    return "?" if field in device.unavailable else _text(getattr(device, field))


def _titled(device: PciDevice) -> str:
    """Return the class and the name of a device, as lspci does."""
    name = name_text(device.vendor, device.device)
    return f"{device.class_name}: {name}" if device.class_name else name


def _identified(device: PciDevice) -> str:
    """Return the class, the name, the ids and the revision of a device."""
    ids = ids_text(device.vendor_id, device.device_id)
    return f"{_titled(device)} [{ids}] ({_revision(device)})"


def _revision(device: PciDevice) -> str:
    return whole(f"rev {hex_text(device.revision, 2)}")


def _node(device: PciDevice) -> str:
    """Return the NUMA node: a number, a dash without one (-1), a question mark if it is unknown."""
    if device.numa_node is None:
        return "?"
    return _NONE if device.numa_node < 0 else str(device.numa_node)


def _text(value: str | int | None) -> str:
    return _NONE if value is None else str(value)


def _list(values: Sequence[str] | None) -> str:
    return " ".join(values) if values else _NONE
