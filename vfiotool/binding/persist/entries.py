"""The devices that are bound to a VFIO driver at each boot: add, remove and list them.

An entry is a udev rule (``udev_rule``). Hooks copy the rules into the initramfs (``initramfs_hooks``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence

from vfiotool.binding import marked_files, udevadm
from vfiotool.binding.ownership import Owner, siblings
from vfiotool.binding.persist.arrival_rule import remove_arrival_rule, write_arrival_rule
from vfiotool.binding.persist.initramfs_hooks import remove_hooks, write_hooks
from vfiotool.binding.persist.topology_path import find_at, read_path
from vfiotool.binding.persist.udev_rule import (
    LASTING_RULES,
    PREFIX,
    RULES_DIR,
    SUFFIX,
    PersistEntry,
    is_rule_driver,
    parse_rule,
    rule_text,
    stamp_path,
)
from vfiotool.errors import RefusedError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import device_path, read_id
from vfiotool.host.tree import Tree


def entry_for(
    tree: Tree, address: str, driver: str, owner: Owner | None = None, allowed: Collection[str] = ()
) -> PersistEntry:
    """Return the entry for the device that is at an address now; ``allowed`` are the lifted rules.

    Raises:
        DeviceNotFoundError: there is no device at the address.
        RefusedError: the driver is no VFIO driver.
        UnsupportedError: the device is a VF, or has no place that lasts over reboots.
        VfioToolError: the ids of the device are unknown.
    """
    if not is_rule_driver(driver):
        raise RefusedError(
            f"refused: '{driver}' is not a VFIO driver, and a rule for another could harm a group in use",
            reasons=[f"'{driver}' is not a VFIO driver"],
            hint="name vfio-pci or a variant of it; a host driver takes its devices by itself",
        )
    path = read_path(tree, address)
    if tree.exists(f"{device_path(address)}/physfn"):
        raise UnsupportedError(
            f"{address} is a VF, which does not exist when the machine boots",
            hint="create and bind VFs after each boot: 'vfiotool sriov PF N --bind'",
        )
    vendor_id, device_id = read_ids(tree, address)
    if vendor_id is None or device_id is None:
        raise VfioToolError(
            f"the ids of {address} cannot be read, by which a rule would know it again",
            hint=f"see whether it answers: 'vfiotool config {address}'",
        )
    lasting = tuple(rule for rule in LASTING_RULES if rule in allowed)
    return PersistEntry(address, path, vendor_id, device_id, driver, owner, lasting)


def add_all(tree: Tree, added: Sequence[PersistEntry]) -> None:
    """Add entries, in effect from the next boot on; all of them, or none.

    Writes the rules of the entries, the rule for devices that arrive later, and a hook for each installed
    builder of an initramfs. Loads and binds nothing, and builds no initramfs: see ``rebuild_commands``. The
    caller checks that the machine can do without the devices.

    Raises:
        UnsupportedError: the machine has no udev.
        VfioToolError: two devices of a group would have two owners, or a file cannot be written, or was not
            written by vfiotool; nothing was added.
    """
    if not tree.exists(RULES_DIR):
        raise UnsupportedError(
            f"this machine has no folder {RULES_DIR}", hint="install udev; without it nothing can persist"
        )
    with marked_files.locked(tree.path(RULES_DIR)):
        _check_owners(tree, added)
        fresh = [entry for entry in added if marked_files.read(tree.path(entry.rule)) is None]
        try:
            for entry in added:
                _create_stamp(tree, entry)
                marked_files.write(tree.path(entry.rule), rule_text(entry))
            write_hooks(tree)
            write_arrival_rule(tree)
        except (VfioToolError, OSError):
            _remove_rules(tree, fresh)
            raise


def remove_all(tree: Tree, removed: Sequence[PersistEntry]) -> None:
    """Remove entries, and with the last entry the hooks too. The devices stay on their drivers.

    When it returns, the rules are no longer in force.

    Raises:
        VfioToolError: a file cannot be removed, or was not written by vfiotool.
    """
    if not removed:
        return
    with marked_files.locked(tree.path(RULES_DIR)):
        _remove_rules(tree, removed)
        if not entries(tree):
            remove_hooks(tree)
            remove_arrival_rule(tree)


def entries(tree: Tree) -> list[PersistEntry]:
    """Return all entries, in the order of their paths.

    Raises:
        VfioToolError: a file that is named like a rule of vfiotool cannot be parsed.
    """
    names = sorted(name for name in tree.find_names(RULES_DIR) if name.startswith(PREFIX))
    found = []
    for name in names:
        if name.endswith(SUFFIX):
            text = marked_files.read(tree.path(f"{RULES_DIR}/{name}"))
            if text is not None:
                found.append(parse_rule(f"{RULES_DIR}/{name}", text))
    return found


def present_at(tree: Tree, entry: PersistEntry) -> str | None:
    """Return the address of the device at the entry's path if it has the entry's ids, else ``None``."""
    address = find_at(tree, entry.path)
    if address is None or read_ids(tree, address) != (entry.vendor_id, entry.device_id):
        return None
    return address


def read_ids(tree: Tree, address: str) -> tuple[int | None, int | None]:
    """Return the vendor and the device id of a device, ``None`` for both if it is gone."""
    return read_id(tree, address, "vendor"), read_id(tree, address, "device")


def _check_owners(tree: Tree, added: Sequence[PersistEntry]) -> None:
    """Check that entries give the node of a group to one owner: the node's owner would else be chance."""
    owned = {entry.path: entry for entry in [*entries(tree), *added] if entry.owner is not None}
    present = {present_at(tree, entry): entry for entry in owned.values()}
    for address, entry in present.items():
        for sibling in siblings(tree, address) if address is not None else ():
            other = present.get(sibling)
            if other is not None and other.owner != entry.owner:
                raise VfioToolError(
                    f"{sibling} has the owner {other.owner} at each boot, and {address}, in the same IOMMU "
                    f"group, would have {entry.owner}: a group has one node",
                    hint=f"give both the same owner, or run 'vfiotool persist remove {sibling}' first",
                )


def _create_stamp(tree: Tree, entry: PersistEntry) -> None:
    """Mark this boot's first uevent as processed, so that the rule does not act before the next boot."""
    stamp = tree.path(stamp_path(entry))
    os.makedirs(os.path.dirname(stamp), exist_ok=True)
    os.close(os.open(stamp, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))


def _remove_rules(tree: Tree, removed: Sequence[PersistEntry]) -> None:
    try:
        for entry in removed:
            marked_files.remove(tree.path(entry.rule))
    finally:
        if removed and tree.is_live:
            with contextlib.suppress(VfioToolError):  # no rule is in force without a working udevd
                udevadm.reload()
        for entry in removed:
            if not tree.exists(entry.rule):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(tree.path(stamp_path(entry)))
