"""The udev rule of a persistent binding: its text, and the entry that a rule's file describes.

A rule matches the place where the device is plugged in, and checks the device's ids. It sets the driver
override at the first PCI uevent of a boot, before any driver module can be loaded. It only binds VFIO
drivers, and only to devices without a driver: so it never makes a host driver probe, and never takes a
device from its driver. If the entry has an owner, the rule gives the device's nodes to that owner.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from vfiotool.binding.marked_files import MARK
from vfiotool.binding.ownership import Owner, assignments, is_numeric, rule_file
from vfiotool.binding.persist.topology_path import devpath_pattern, is_path
from vfiotool.errors import VfioToolError
from vfiotool.host.attributes import DRIVERS, GROUPS
from vfiotool.host.groups import is_vfio_driver
from vfiotool.pci.address import is_address

RULES_DIR = "/etc/udev/rules.d"
PREFIX, SUFFIX = "40-vfiotool-", ".rules"  # before 80-drivers.rules, which loads modules
ARRIVED = ".VFIOTOOL_ARRIVED"  # the dot: for the rules of this event alone, not for udev's database
LASTING_RULES = ("partitions", "denylist", "vga", "ids")
"""The rules of a refusal that are about what a device is and has, and not about its use at the moment."""
_DRIVER = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class PersistEntry:
    """A device that is bound to ``driver`` at each boot.

    ``path`` is the device's topological path, ``address`` its address when the entry was made. ``owner``
    may open the device's nodes; ``None`` leaves them to root. ``allowed`` are the rules of ``LASTING_RULES``
    that the user lifted: they are lifted too if the device arrives while the machine runs.
    """

    address: str
    path: str
    vendor_id: int
    device_id: int
    driver: str
    owner: Owner | None = None
    allowed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path, in a form that fits into a file's name."""
        return re.sub("[/:]", "-", self.path)

    @property
    def rule(self) -> str:
        """The path of the udev rule's file."""
        return f"{RULES_DIR}/{PREFIX}{self.name}{SUFFIX}"


def stamp_path(entry: PersistEntry) -> str:
    """Return the path of the file that exists once the first PCI uevent of this boot was processed."""
    return f"/run/udev/vfiotool-{entry.name}"


def rule_text(entry: PersistEntry) -> str:
    """Return the text of the rule's file. ``parse_rule`` reads its second line.

    The stamp limits the shell to the first PCI devices of a boot. No kernel parameter can replace the
    rule: ``vfio-pci.ids`` matches all devices with the same ids.
    """
    place = devpath_pattern(entry.path)
    vendor, device = f"0x{entry.vendor_id:04x}", f"0x{entry.device_id:04x}"
    stamp = stamp_path(entry)
    return f"""\
{MARK} persist add; 'vfiotool persist remove' takes it away.
# {json.dumps(asdict(entry))}
{_owner_lines(entry)}ACTION!="add", GOTO="vfiotool_end"
SUBSYSTEM!="pci", GOTO="vfiotool_end"

# Any device's event may load the native driver, which then takes every device that it serves. So the
# first event of all sets the override, whichever device it is of.
TEST!="{stamp}", PROGRAM="/bin/sh -c '\
for d in /sys{place}; do \
[ -e $$d/vendor ] && [ ! -e $$d/physfn ] && [ ! -e $$d/driver ] && \
{_has_ids(entry)} && \
echo {entry.driver} >$$d/driver_override; \
done; : >{stamp}'"

# The device's own event. A device that has a driver keeps it; a VF can have its PF's path.
DEVPATH!="{place}", GOTO="vfiotool_end"
ATTR{{vendor}}!="{vendor}", GOTO="vfiotool_end"
ATTR{{device}}!="{device}", GOTO="vfiotool_end"
TEST=="physfn", GOTO="vfiotool_end"
TEST=="driver", GOTO="vfiotool_bound"
ATTR{{driver_override}}="{entry.driver}"
IMPORT{{builtin}}="kmod load {entry.driver}"
TEST!="driver", ATTR{{[drivers/pci:{entry.driver}]bind}}="%k"

# The kernel's own event of a device that was plugged in or found by a rescan, and not an event that
# udevadm repeats: the device's own driver may have taken it already.
LABEL="vfiotool_bound"
ENV{{SYNTH_UUID}}!="?*", TEST!="{DRIVERS}/{entry.driver}/%k", ENV{{{ARRIVED}}}="1"
LABEL="vfiotool_end"
"""


def _owner_lines(entry: PersistEntry) -> str:
    """Return the lines that give the device's nodes, its group's and its own, to the entry's owner.

    A group's node has no parent in sysfs: the group is found by its number, among the groups that have the
    device. Group numbers and bus numbers change. An owner of this boot (``ownership``) takes precedence.
    """
    if entry.owner is None:
        return ""
    runtime = rule_file("$${d##*/}")
    return f"""\
ACTION!="remove", SUBSYSTEM=="vfio|vfio-dev", PROGRAM=="/bin/sh -c '\
for d in /sys{devpath_pattern(entry.path)}; do \
[ -e $$d/vendor ] && [ ! -e $$d/physfn ] && {_has_ids(entry)} && [ ! -e {runtime} ] || continue; \
[ -e {GROUPS}/%k/devices/$${{d##*/}} ] || [ -e $$d/vfio-dev/%k ] || continue; \
exit 0; done; exit 1'", {assignments(entry.owner)}
"""


def _has_ids(entry: PersistEntry) -> str:
    """Return the shell's test that the device whose folder is ``$d`` has the entry's ids."""
    ids = f"0x{entry.vendor_id:04x}0x{entry.device_id:04x}"
    return f"read -r v <$$d/vendor && read -r i <$$d/device && [ $$v$$i = {ids} ]"


def parse_rule(path: str, text: str) -> PersistEntry:
    """Return the entry that the rule's file at ``path`` describes.

    Raises:
        VfioToolError: the file does not describe the device that its name is for.
    """
    try:
        entry = _from_document(json.loads(text.splitlines()[1].removeprefix("# ")))
        if entry.rule == path:
            return entry
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        pass
    raise VfioToolError(
        f"{path} does not say which device it is for, as vfiotool's rules do",
        hint=f"remove {path}, then add the device again",
    )


def _from_document(document: Any) -> PersistEntry:
    """Check an entry from a file that anyone may have edited: its parts become parts of paths and rules."""
    owner = document.get("owner")
    allowed = tuple(document.get("allowed", ()))
    parsed = {"owner": None if owner is None else Owner(**owner), "allowed": allowed}
    entry = PersistEntry(**document | parsed)
    texts, ids = (entry.address, entry.path, entry.driver), (entry.vendor_id, entry.device_id)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not texts")
    if not all(type(number) is int and 0 <= number <= 0xFFFF for number in ids):
        raise ValueError("not ids")
    if entry.owner is not None and not is_numeric(entry.owner):
        raise ValueError("not an owner")
    if not set(allowed) <= set(LASTING_RULES):
        raise ValueError("not rules that last")
    if not (is_address(entry.address) and is_path(entry.path) and is_rule_driver(entry.driver)):
        raise ValueError("not an entry")
    return entry


def is_rule_driver(name: str) -> bool:
    """Return True if a name is a VFIO driver's, without any character that udev or a shell interprets."""
    return is_vfio_driver(name) and _DRIVER.fullmatch(name) is not None
