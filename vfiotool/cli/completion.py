"""Shell completion of a verb's arguments: addresses with device names, and the other forms of an ADDRESS.

Completion reads no file that can block, prints no errors, and offers nothing if it fails.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import addresses, device_path, find_group, read_id, read_name
from vfiotool.host.groups import BRIDGE_CLASSES, group_ids, is_vfio_driver
from vfiotool.host.pending_unbinds import STATE_DIR
from vfiotool.host.tree import Tree
from vfiotool.pci.ids import ids_text
from vfiotool.pci.names import PciNames

_CLASSES = ("net", "nvme", "block")
_DOMAIN = "0000:"
_VGA_CLASS = 0x0300

Items = Iterator[tuple[str, str]]  # (word, description)


def complete_device(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete an ADDRESS of any device."""
    return _completed(context, incomplete, _devices)


def complete_endpoint(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete an ADDRESS of an endpoint. Bridges are left out, because vfiotool does not bind them."""
    return _completed(context, incomplete, _endpoints)


def complete_opened(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete an ADDRESS of a device that is on a VFIO driver, so that it can be opened."""
    return _completed(context, incomplete, _on_vfio)


def complete_region(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete a REGION of the device that the command line names."""
    selector = context.params.get("selector")
    return _completed(context, incomplete, lambda inventory, _: _regions(inventory, selector))


def complete_recorded(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete an ADDRESS of a recorded device, which can be restored."""
    return _completed(context, incomplete, _recorded)


def complete_persisted(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete an ADDRESS of a device that has a persist entry."""
    return _completed(context, incomplete, _persisted)


def complete_group(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the number of an IOMMU group."""
    return _completed(context, incomplete, _groups)


def _completed(
    context: click.Context, incomplete: str, candidates: Callable[[DeviceInventory, str], Items]
) -> list[CompletionItem[str]]:
    options = context.find_root().params
    inventory = DeviceInventory(Tree(options.get("sysroot") or "/"), options.get("state_dir") or STATE_DIR)
    try:
        return [
            CompletionItem(
                value, help=text.replace(",", "")
            )  # click's script for fish cuts the help at a comma
            for value, text in candidates(inventory, incomplete)
            if value.startswith(incomplete) and shlex.quote(value) == value
        ]
    except (OSError, ValueError, VfioToolError):
        return []


class DeviceInventory:
    """The device data that completion reads. No read waits for a lock of the kernel."""

    def __init__(self, tree: Tree, state_dir: str) -> None:
        self.tree, self.state_dir = tree, state_dir
        self.addresses = addresses(tree)
        self._names = PciNames.of_this_machine()

    def class_code(self, address: str) -> int:
        """Return the class of a device, or 0 (a device from before there were classes) if it is unknown."""
        return read_id(self.tree, address, "class") or 0

    def ids(self, address: str) -> tuple[int | None, int | None]:
        """Return the vendor id and the device id."""
        return read_id(self.tree, address, "vendor"), read_id(self.tree, address, "device")

    def name(self, address: str) -> str:
        """Return the vendor, the name and the driver of a device."""
        return f"{read_name(self.tree, address, self._names)} ({self.driver(address) or 'no driver'})"

    def driver(self, address: str) -> str | None:
        """Return the driver of a device, or ``None``."""
        return self.tree.find_link(f"{device_path(address)}/driver")

    def is_bridge(self, address: str) -> bool:
        """Return True if a device is a bridge."""
        return self.class_code(address) >> 8 in BRIDGE_CLASSES


def _devices(inventory: DeviceInventory, incomplete: str) -> Items:
    return _forms(inventory, inventory.addresses, incomplete)


def _endpoints(inventory: DeviceInventory, incomplete: str) -> Items:
    return _forms(inventory, [one for one in inventory.addresses if not inventory.is_bridge(one)], incomplete)


def _on_vfio(inventory: DeviceInventory, incomplete: str) -> Items:
    chosen = [one for one in inventory.addresses if is_vfio_driver(inventory.driver(one))]
    return _forms(inventory, chosen, incomplete)


def _regions(inventory: DeviceInventory, selector: str | None) -> Items:
    from vfiotool.host.bars import ROM, read_bars
    from vfiotool.host.selectors import select

    (address,) = select(inventory.tree, [selector or ""])
    for bar in read_bars(inventory.tree, address):
        yield "rom" if bar.index == ROM else f"bar{bar.index}", f"{bar.size:#x} bytes, {bar.type}"
    yield "config", "configuration space"
    if inventory.class_code(address) >> 8 == _VGA_CLASS:
        yield "vga", "VGA address ranges"


def _recorded(inventory: DeviceInventory, incomplete: str) -> Items:
    from vfiotool.binding.journal import Journal

    try:
        recorded = Journal(inventory.state_dir).addresses()
    except PermissionError:  # only root can read the journal, and a shell completes before sudo runs
        return _endpoints(inventory, incomplete)
    return ((one, inventory.name(one)) for one in inventory.addresses if one in recorded)


def _persisted(inventory: DeviceInventory, incomplete: str) -> Items:
    from vfiotool.binding.persist.entries import entries

    return ((entry.address, inventory.name(entry.address)) for entry in entries(inventory.tree))


def _groups(inventory: DeviceInventory, incomplete: str) -> Items:
    members: dict[int | None, list[str]] = {}
    for address in inventory.addresses:
        members.setdefault(find_group(inventory.tree, address), []).append(address)
    for number in group_ids(inventory.tree):
        yield str(number), " ".join(members.get(number, ()))


def _forms(inventory: DeviceInventory, chosen: Iterable[str], incomplete: str) -> Items:
    """Yield full addresses, and the other forms of an ADDRESS only if the word has a first character."""
    full = [address for address in chosen if address.startswith(incomplete)]
    for address in full:
        yield address, inventory.name(address)
    if not incomplete:
        return
    if not full:
        short = [one.removeprefix(_DOMAIN) for one in chosen if one.startswith(_DOMAIN + incomplete)]
        yield from ((address, inventory.name(_DOMAIN + address)) for address in short)
    known = {inventory.ids(one): one for one in chosen}
    yield from ((ids_text(*ids), inventory.name(one)) for ids, one in known.items() if None not in ids)
    yield from ((f"group:{number}", members) for number, members in _groups(inventory, incomplete))
    for kind in _CLASSES:
        for name in sorted(inventory.tree.find_names(f"/sys/class/{kind}")):
            if name.startswith(incomplete) and _is_on_pci(inventory.tree, kind, name):
                yield name, kind


def _is_on_pci(tree: Tree, kind: str, name: str) -> bool:
    """Return True if an interface or a disk belongs to a PCI device.

    A virtual interface or disk does not. An NVMe namespace that controllers can share does, although it is
    not below a PCI device in sysfs.
    """
    path = tree.resolve(f"/sys/class/{kind}/{name}")
    return path.startswith("/sys/devices/pci") or "/nvme-subsys" in path
