"""Have devices on a VFIO driver from the start of the machine on: a udev rule for each, and initramfs hooks.

A rule is keyed on where the device is plugged in, and checked against its ids. It sets the driver
override when the first PCI device of all is announced, before any module can be loaded for one, and
it only ever binds to a VFIO driver, and only a device that no driver has: so it never has a host
driver probe, and never takes a device away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vfiotool.binding import marked_files, udevadm
from vfiotool.binding.persist.topology_path import find_at, is_path, pattern, read_path
from vfiotool.errors import RefusedError, UnsupportedError, VfioToolError
from vfiotool.host.attributes import device_path
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_address

RULES = "/etc/udev/rules.d"
_PREFIX, _SUFFIX = "40-vfiotool-", ".rules"  # before 80-drivers.rules, which loads modules
_DRIVER = re.compile(r"[A-Za-z0-9_-]+")
_HOOKS = os.path.join(os.path.dirname(__file__), "hooks")


@dataclass(frozen=True, slots=True)
class InitramfsHook:
    """What takes the rules into an initramfs, for one of the programs that build it."""

    builder: str
    path: str
    source: str
    mode: int
    rebuild: str

    @property
    def text(self) -> str:
        """The file's content."""
        with open(os.path.join(_HOOKS, self.source), encoding="utf-8") as file:
            return file.read()

    def has_builder(self, tree: Tree) -> bool:
        """Say whether that program is installed."""
        return tree.exists(os.path.dirname(self.path))


HOOKS = (
    InitramfsHook(
        "initramfs-tools",
        "/etc/initramfs-tools/hooks/vfiotool",
        "initramfs-tools",
        0o755,
        "update-initramfs -u",
    ),
    InitramfsHook("dracut", "/etc/dracut.conf.d/90-vfiotool.conf", "dracut.conf", 0o644, "dracut -f"),
)


@dataclass(frozen=True, slots=True)
class PersistEntry:
    """One device that is to be on ``driver``: ``path`` is topological, ``address`` the one at the time.

    ``rule`` is the file that says so.
    """

    address: str
    path: str
    vendor_id: int
    device_id: int
    driver: str

    @property
    def name(self) -> str:
        """The path as a part of a file's name."""
        return re.sub("[/:]", "-", self.path)

    @property
    def rule(self) -> str:
        """The udev rule's file."""
        return f"{RULES}/{_PREFIX}{self.name}{_SUFFIX}"


def add(tree: Tree, address: str, driver: str = "vfio-pci") -> PersistEntry:
    """Have the device that is at an address now on a VFIO driver from the next start on.

    Raises as ``entry_for`` and ``add_all`` do.
    """
    entry = entry_for(tree, address, driver)
    add_all(tree, [entry])
    return entry


def add_all(tree: Tree, added: Sequence[PersistEntry]) -> None:
    """Have what the entries say from the next start on; all of them, or none.

    Writes the rules, and a hook for each builder of an initramfs that is installed; loads and binds
    nothing, and builds no initramfs: see ``rebuild_commands``. Whether the machine can do without the
    devices is for the caller to check.

    Raises:
        UnsupportedError: the machine has no udev.
        VfioToolError: a file cannot be written, or is somebody else's; nothing was added.
    """
    if not tree.exists(RULES):
        raise UnsupportedError(
            f"this machine has no folder {RULES}", hint="install udev; without it nothing can persist"
        )
    with marked_files.locked(tree.path(RULES)):
        fresh = [entry for entry in added if marked_files.read(tree.path(entry.rule)) is None]
        try:
            for entry in added:
                _stamp(tree, entry)
                marked_files.write(tree.path(entry.rule), rule_text(entry))
            for hook in installed_hooks(tree):
                _write_hook(tree, hook)
        except (VfioToolError, OSError):
            _remove_rules(tree, fresh)
            raise


def remove(tree: Tree, entry: PersistEntry) -> None:
    """Leave the device of an entry to its own driver again; raises as ``remove_all`` does."""
    remove_all(tree, [entry])


def remove_all(tree: Tree, removed: Sequence[PersistEntry]) -> None:
    """Take entries' rules away, and with the last one the hooks too. The devices stay as they are.

    When it returns, the rules are in force no more.

    Raises:
        VfioToolError: a file cannot be removed, or is somebody else's.
    """
    if not removed:
        return
    with marked_files.locked(tree.path(RULES)):
        _remove_rules(tree, removed)
        if entries(tree):
            return
        for hook in installed_hooks(tree):
            with marked_files.locked(os.path.dirname(tree.path(hook.path))):
                marked_files.remove(tree.path(hook.path))


def entries(tree: Tree) -> list[PersistEntry]:
    """Return all entries, in the order of their paths.

    Raises:
        VfioToolError: a file that has the name of one of our rules cannot be understood.
    """
    names = sorted(name for name in tree.find_names(RULES) if name.startswith(_PREFIX))
    found = []
    for name in names:
        if name.endswith(_SUFFIX):
            text = marked_files.read(tree.path(f"{RULES}/{name}"))
            if text is not None:
                found.append(_parse(f"{RULES}/{name}", text))
    return found


def installed_hooks(tree: Tree) -> list[InitramfsHook]:
    """Return the hooks whose builder of an initramfs is installed."""
    return [hook for hook in HOOKS if hook.has_builder(tree)]


def rebuild_commands(tree: Tree) -> list[str]:
    """Return the commands that bring a change of the entries into the initramfs; any one of them does."""
    return [hook.rebuild for hook in installed_hooks(tree)]


def present_at(tree: Tree, entry: PersistEntry) -> str | None:
    """Return the address of the device at the entry's path if it has the entry's ids, else ``None``."""
    address = find_at(tree, entry.path)
    if address is None or read_ids(tree, address) != (entry.vendor_id, entry.device_id):
        return None
    return address


def read_ids(tree: Tree, address: str) -> tuple[int, int]:
    """Return vendor and device id of a device, -1 where it is gone."""
    vendor, device = (
        int(tree.find(f"{device_path(address)}/{name}") or "-1", 0) for name in ("vendor", "device")
    )
    return vendor, device


def rule_text(entry: PersistEntry) -> str:
    """Return the rule's file. Its second line is what ``entries`` reads.

    The stamp keeps the shell from being started for more than the first PCI devices of a boot. Of the
    kernel's parameters none would do in place of all this: ``vfio-pci.ids`` takes all devices of a kind.
    """
    place = pattern(entry.path)
    vendor, device = f"0x{entry.vendor_id:04x}", f"0x{entry.device_id:04x}"
    stamp = stamp_path(entry)
    return f"""\
{marked_files.MARK} persist add; 'vfiotool persist remove' takes it away.
# {json.dumps(asdict(entry))}
ACTION!="add", GOTO="vfiotool_end"
SUBSYSTEM!="pci", GOTO="vfiotool_end"

# Any device's event may load the native driver, which then takes every device that it serves. So the
# first event of all sets the override, whichever device it is of.
TEST!="{stamp}", PROGRAM="/bin/sh -c '\
for d in /sys{place}; do \
[ -e $$d/vendor ] && [ ! -e $$d/physfn ] && [ ! -e $$d/driver ] && \
read -r v <$$d/vendor && read -r i <$$d/device && [ $$v$$i = {vendor}{device} ] && \
echo {entry.driver} >$$d/driver_override; \
done; : >{stamp}'"

# The device's own event. A device that has a driver keeps it; a VF can have its PF's path.
DEVPATH!="{place}", GOTO="vfiotool_end"
ATTR{{vendor}}!="{vendor}", GOTO="vfiotool_end"
ATTR{{device}}!="{device}", GOTO="vfiotool_end"
TEST=="physfn", GOTO="vfiotool_end"
TEST=="driver", GOTO="vfiotool_end"
ATTR{{driver_override}}="{entry.driver}"
IMPORT{{builtin}}="kmod load {entry.driver}"
TEST!="driver", ATTR{{[drivers/pci:{entry.driver}]bind}}="%k"
LABEL="vfiotool_end"
"""


def stamp_path(entry: PersistEntry) -> str:
    """Return the file that says, until the machine ends, that its first event has been."""
    return f"/run/udev/vfiotool-{entry.name}"


def entry_for(tree: Tree, address: str, driver: str) -> PersistEntry:
    """Return the entry for the device that is at an address now.

    Raises:
        DeviceNotFoundError: there is no such device.
        RefusedError: the driver is no VFIO driver.
        UnsupportedError: the device is a VF, or has no place that lasts.
    """
    if not _is_driver(driver):
        raise RefusedError(
            f"refused: '{driver}' is not a VFIO driver, and a rule for another could harm a group in use",
            reasons=[f"'{driver}' is not a VFIO driver"],
            hint="name vfio-pci or a variant of it; a host driver takes its devices by itself",
        )
    path = read_path(tree, address)
    if tree.exists(f"{device_path(address)}/physfn"):
        raise UnsupportedError(
            f"{address} is a VF, which is not there when the machine starts",
            hint="make and bind VFs after each start: 'vfiotool sriov PF N --bind'",
        )
    vendor_id, device_id = read_ids(tree, address)
    return PersistEntry(address, path, vendor_id, device_id, driver)


def _write_hook(tree: Tree, hook: InitramfsHook) -> None:
    path = tree.path(hook.path)
    with marked_files.locked(os.path.dirname(path)):
        marked_files.write(path, hook.text, hook.mode)


def _stamp(tree: Tree, entry: PersistEntry) -> None:
    """Have the machine's first event behind us: what comes now is no start."""
    stamp = tree.path(stamp_path(entry))
    os.makedirs(os.path.dirname(stamp), exist_ok=True)
    os.close(os.open(stamp, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))


def _remove_rules(tree: Tree, removed: Sequence[PersistEntry]) -> None:
    try:
        for entry in removed:
            marked_files.remove(tree.path(entry.rule))
    finally:
        if removed and tree.is_live:
            with contextlib.suppress(VfioToolError):  # without udevd, or a sound one, none is in force
                udevadm.reload()
        for entry in removed:
            if not tree.exists(entry.rule):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(tree.path(stamp_path(entry)))


def _parse(path: str, text: str) -> PersistEntry:
    try:
        entry = _from_document(json.loads(text.splitlines()[1].removeprefix("# ")))
        if entry.rule == path:
            return entry
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        pass
    raise VfioToolError(
        f"{path} does not say which device it is for, as vfiotool's rules do",
        hint=f"remove {path}, then add the device again",
    )


def _from_document(document: Any) -> PersistEntry:
    """Take an entry from a file that anyone may have edited: each part becomes a part of a path or rule."""
    entry = PersistEntry(**document)
    texts, ids = (entry.address, entry.path, entry.driver), (entry.vendor_id, entry.device_id)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not texts")
    if not all(type(number) is int and 0 <= number <= 0xFFFF for number in ids):
        raise ValueError("not ids")
    if not (is_address(entry.address) and is_path(entry.path) and _is_driver(entry.driver)):
        raise ValueError("not an entry")
    return entry


def _is_driver(name: str) -> bool:
    return is_vfio_driver(name) and _DRIVER.fullmatch(name) is not None
