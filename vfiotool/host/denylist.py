"""Devices that must not be bound to vfio-pci: the kernel's own list, and the list of the machine's owner.

vfiotool reads the owner's list and never writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vfiotool.errors import DeviceNotFoundError, SelectorError, VfioToolError
from vfiotool.host.devices import PciDevice
from vfiotool.host.selectors import select
from vfiotool.host.tree import Tree

OWNERS_LIST = "/etc/vfiotool/denylist"
_DISABLED = "/sys/module/vfio_pci/parameters/disable_denylist"

# vfio_pci_dev_in_denylist() in drivers/vfio/pci/vfio_pci.c: Intel's QAT (v5.9, commit 50173329c8cc),
# its DSA and IAX of Sapphire Rapids (v6.9, commit 95feb3160eef). Their errata let an
# untrusted user hang the machine or worse.
_KERNELS = {
    (0x8086, device): name
    for name, devices in {
        "QAT": (0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9),
        "DSA": (0x0B25,),
        "IAX": (0x0CFE,),
    }.items()
    for device in devices
}


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a device is on a list. The owner's list forbids every operation that takes it from the host."""

    reason: str
    by_owner: bool


def find_denied(tree: Tree, devices: Iterable[PciDevice]) -> Mapping[str, Denial]:
    """Return the denial of each device that is on a list, by address.

    Raises:
        VfioToolError: the owner's list cannot be read, or has a malformed line.
    """
    denied = {}
    owners = _owners(tree)
    lifted = tree.find(_DISABLED) == "Y"
    for device in devices:
        name = _kernels_name(device)
        if name == "" and not lifted:
            reason = "its ids cannot be read, so the kernel's denylist may have it"
            denied[device.address] = Denial(reason, by_owner=False)
        elif name is not None and not lifted:
            reason = (
                f"the kernel's denylist keeps {name} devices from vfio-pci: by their errata, a user of the "
                "device can hang the machine or worse; to bind it, also set vfio-pci's module parameter "
                "disable_denylist=1"
            )
            denied[device.address] = Denial(reason, by_owner=False)
        if device.address in owners:
            line = owners[device.address]
            denied[device.address] = Denial(f"'{line}' in {OWNERS_LIST} names it", by_owner=True)
    return denied


def _kernels_name(device: PciDevice) -> str | None:
    """Return what a device of the kernel's list is; ``None`` if it is not on the list, empty if unknown."""
    if device.vendor_id is None or device.device_id is None:
        return ""
    return _KERNELS.get((device.vendor_id, device.device_id))


def _owners(tree: Tree) -> Mapping[str, str]:
    """Return the line of the owner's list that names each address.

    A line is an ADDRESS, and ``#`` starts a comment. A line may match no device: the device need not be
    plugged in. Inside a container, the list of the machine counts too, if pid 1 of the machine is in sight.
    """
    try:
        text = "\n".join(tree.find(path) or "" for path in _owners_lists(tree))
    except OSError as error:
        raise _unusable(error.strerror or str(error)) from error
    found = {}
    for line in text.splitlines():
        selector = line.partition("#")[0].strip()
        if selector:
            found.update(dict.fromkeys(_named(tree, selector), selector))
    return found


def _owners_lists(tree: Tree) -> list[str]:
    """Return the list that this process sees, and that of pid 1 if it is another file."""
    machines = f"/proc/1/root{OWNERS_LIST}"
    try:
        is_other = tree.root == "/" and not os.path.samestat(os.stat("/"), os.stat("/proc/1/root"))
    except OSError:  # this user may not look
        is_other = False
    return [OWNERS_LIST, machines] if is_other else [OWNERS_LIST]


def _named(tree: Tree, selector: str) -> list[str]:
    try:
        return select(tree, [selector])
    except DeviceNotFoundError:
        return []
    except SelectorError as error:
        raise _unusable(f"'{selector}' is not a valid ADDRESS") from error


def _unusable(cause: str) -> VfioToolError:
    return VfioToolError(
        f"cannot use {OWNERS_LIST}, so no device is taken: {cause}",
        hint="correct the file: each line is an ADDRESS as for 'vfiotool bind', '#' starts a comment",
    )
