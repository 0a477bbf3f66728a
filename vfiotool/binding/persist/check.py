"""Check whether an entry is in effect now and will be at the next boot. Reads only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from vfiotool.binding import marked_files
from vfiotool.binding.ownership import denied, device_nodes, owner_of
from vfiotool.binding.persist import arrival_rule
from vfiotool.binding.persist.entries import present_at, read_ids
from vfiotool.binding.persist.initramfs_hooks import HOOKS, makers, rebuild_commands, why_without_effect
from vfiotool.binding.persist.topology_path import find_at
from vfiotool.binding.persist.udev_rule import PersistEntry, rule_text
from vfiotool.host.attributes import device_path
from vfiotool.host.boot_image import OSTREE, boot_images, had_initramfs
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.doctor import Check, judge
from vfiotool.host.driver_ids import builtin_modules
from vfiotool.host.tree import Tree
from vfiotool.pci.ids import ids_text

_NO_INITRAMFS = "none is needed: the boot loader gave this kernel no initramfs"
_NO_BUILDER = f"none of {', '.join(hook.builder for hook in HOOKS)}"


def check(tree: Tree, entry: PersistEntry) -> list[Check]:
    """Check one entry: its rule, the device, its driver, the native driver, and the initramfs.

    A check whose facts cannot be read is unknown (``ok`` is ``None``).
    """
    return judge(_CHECKS, tree, entry)


def _check_rule(tree: Tree, entry: PersistEntry) -> Verdict:
    if marked_files.read(tree.path(entry.rule)) == rule_text(entry):
        return Verdict(True, entry.rule)
    return Verdict(False, f"{entry.rule} is not as vfiotool writes it", _add_command(entry))


def _check_device(tree: Tree, entry: PersistEntry) -> Verdict:
    wanted = ids_text(entry.vendor_id, entry.device_id)
    address = find_at(tree, entry.path)
    remedy = f"vfiotool persist remove {entry.path}"
    if address is None:
        return Verdict(False, f"no device is at {entry.path}", remedy)
    found = ids_text(*read_ids(tree, address))
    if found != wanted:
        return Verdict(False, f"{address}, at {entry.path}, is {found} and not {wanted}", remedy)
    return Verdict(True, f"{address} is {wanted}")


def _check_driver(tree: Tree, entry: PersistEntry) -> Verdict:
    address = present_at(tree, entry)
    if address is None:
        return Verdict(None, "the device is not present")
    driver = tree.find_link(f"{device_path(address)}/driver")
    if driver == entry.driver:
        return Verdict(True, f"{address} is on {driver}")
    remedy = f"vfiotool persist apply {address}"
    return Verdict(False, f"{address} is on {driver or 'no driver'} and not on {entry.driver}", remedy)


def _check_owner(tree: Tree, entry: PersistEntry) -> Verdict:
    """Check who may open the device's nodes; they exist while it is on a VFIO driver."""
    if entry.owner is None:
        return Verdict(True, "the entry names no owner")
    address = present_at(tree, entry)
    nodes = [] if address is None else device_nodes(tree, address)
    if address is None or not nodes:
        return Verdict(None, "the device has no node now")
    wanted = owner_of(tree, address) or entry.owner
    for node in nodes:
        if problem := denied(tree, node, wanted):
            return Verdict(False, problem, f"vfiotool bind --owner {entry.owner} {address}")
    return Verdict(True, f"{', '.join(nodes)}: {wanted}, {wanted.mode:04o}")


def _check_native(tree: Tree, entry: PersistEntry) -> Verdict:
    """Check that no native driver is built into the kernel: it would bind before any process runs."""
    address = present_at(tree, entry)
    if address is None:
        return Verdict(None, "the device is not present")
    alias = tree.read(f"{device_path(address)}/modalias")
    drivers = builtin_modules(tree, alias)
    if drivers is None:
        return Verdict(None, "this kernel does not say which drivers are built in (it does from 5.2 on)")
    if drivers:
        detail = (
            f"{', '.join(drivers)} is built into the kernel, and binds to the device before udev reads a rule"
        )
        return Verdict(False, detail, f"boot a kernel that has {drivers[0]} as a module")
    return Verdict(True, "no driver of the device is built into the kernel")


def _check_arrival(tree: Tree, entry: PersistEntry) -> Verdict:
    """Check that vfiotool is run for a device that arrives while the machine runs."""
    text = marked_files.read(tree.path(arrival_rule.PATH))
    if text is None:
        return _without_arrival_rule(tree, entry)
    program = arrival_rule.written_program(text)
    if program is None:
        return Verdict(False, f"{arrival_rule.PATH} is not as vfiotool writes it", _add_command(entry))
    if not tree.exists(program):
        detail = f"{program}, which {arrival_rule.PATH} runs for a device that arrives, is not there"
        return Verdict(False, detail, _add_command(entry))
    if unsafe := arrival_rule.unsafe_part(tree, program):
        detail = f"udevd runs {program} as root, and not only root can change {unsafe}"
        return Verdict(False, detail, _add_command(entry))
    return Verdict(True, f"if it arrives while the machine runs, {program} binds it, unless it is in use")


def _without_arrival_rule(tree: Tree, entry: PersistEntry) -> Verdict:
    """Return whether the rule is to be there, and what to do with a device that arrives without it."""
    program = arrival_rule.this_program()
    by_hand = f"after the device has arrived: vfiotool persist apply {entry.path}"
    if program is None:
        return Verdict(
            None, "a device that arrives gets its own driver: there is no vfiotool to run", by_hand
        )
    if unsafe := arrival_rule.unsafe_part(tree, program):
        detail = f"a device that arrives gets its own driver: not only root can change {unsafe}, so udevd"
        return Verdict(None, f"{detail} does not run vfiotool", by_hand)
    return Verdict(False, f"{arrival_rule.PATH} is missing", _add_command(entry))


def _check_hooks(tree: Tree, entry: PersistEntry) -> Verdict:
    if had_initramfs(tree) is False:
        return Verdict(True, _NO_INITRAMFS)
    by_hand = f"put {entry.rule} and the module {entry.driver} into the initramfs"
    if tree.exists(OSTREE):
        detail = "this machine may boot an initramfs that was made elsewhere (ostree), without the entry"
        return Verdict(None, detail, " or ".join((*rebuild_commands(tree), by_hand)))
    hooks = makers(tree)
    for hook in hooks:
        if marked_files.read(tree.path(hook.path)) != hook.text:
            detail = f"{hook.path}, for {hook.builder}, is missing or changed"
            return Verdict(False, detail, _add_command(entry))
        if reason := why_without_effect(tree, hook):
            return Verdict(None, f"{hook.path} may have no effect: {reason}", by_hand)
    if hooks:
        return Verdict(True, ", ".join(hook.path for hook in hooks))
    return Verdict(None, f"it is not known what makes this kernel's initramfs: {_NO_BUILDER}", by_hand)


def _check_image(tree: Tree, entry: PersistEntry) -> Verdict:
    if had_initramfs(tree) is False:
        return Verdict(True, _NO_INITRAMFS)
    rebuild = " or ".join(rebuild_commands(tree)) or "build the initramfs again, after the entry was added"
    images = boot_images(tree)
    if not images:
        detail = "the image of this kernel's initramfs is not seen in /boot, /efi or /boot/efi"
        return Verdict(None, detail, rebuild)
    hooks = [hook for hook in makers(tree) if tree.exists(hook.path)]
    since = max(_mtime_ns(tree, path) for path in (entry.rule, *(hook.path for hook in hooks)))
    old = [image for image in images if _mtime_ns(tree, image) < since]
    if not old:
        return Verdict(True, f"{', '.join(images)}: built after the entry was added")
    if len(old) == len(images):
        return Verdict(False, f"{', '.join(old)}: older than the entry", rebuild)
    detail = f"{', '.join(old)}: older than the entry; it is not known which image the machine boots"
    return Verdict(None, detail, rebuild)


def _mtime_ns(tree: Tree, path: str) -> int:
    return os.stat(tree.path(path)).st_mtime_ns


def _add_command(entry: PersistEntry) -> str:
    owner = "" if entry.owner is None else f" --owner {entry.owner}"
    return f"vfiotool persist add --driver {entry.driver}{owner} {entry.address}"


_CHECKS: Mapping[str, Callable[[Tree, PersistEntry], Verdict]] = {
    "rule": _check_rule,
    "device": _check_device,
    "driver": _check_driver,
    "owner": _check_owner,
    "native": _check_native,
    "hotplug": _check_arrival,
    "initramfs-hook": _check_hooks,
    "initramfs": _check_image,
}
