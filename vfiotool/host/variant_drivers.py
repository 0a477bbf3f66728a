"""The best VFIO driver for a device: vfio-pci, or a variant driver for its model.

A variant driver names its devices in ``vfio_pci:`` aliases, which depmod collects in modules.alias
(Documentation/driver-api/vfio-pci-device-specific-driver-acceptance.rst). No variant binds on its own.
"""

from __future__ import annotations

import re

from vfiotool.host.devices import PciDevice
from vfiotool.host.era import find_release
from vfiotool.host.tree import Tree

VFIO_PCI = "vfio-pci"

# Field of an alias -> its hexadecimal digits (struct pci_device_id, as scripts/mod/file2alias.c writes it).
ALIAS_FIELDS = {"v": 8, "d": 8, "sv": 8, "sd": 8, "bc": 2, "sc": 2, "i": 2}
_ALIAS = re.compile(
    "alias vfio_pci:"
    + "".join(rf"{name}(\*|[0-9A-F]{{{width}}})" for name, width in ALIAS_FIELDS.items())
    + r" ([A-Za-z0-9_]+)"
)


def best_vfio_driver(tree: Tree, device: PciDevice) -> str:
    """Return the driver whose alias matches the device with the fewest wildcards.

    The result is ``vfio-pci`` if no alias matches, if an id of the device is unknown, if the kernel has no
    ``vfio_pci:`` aliases (before 5.16), or if modules.alias does not exist or the kernel's release is out of
    sight. Lines that are not aliases are skipped.
    """
    wanted = _fields(device)
    best, most = VFIO_PCI, 0
    for line in _aliases(tree).splitlines() if wanted else ():
        if (match := _ALIAS.fullmatch(line)) is None:
            continue
        *patterns, module = match.groups()
        pairs = zip(patterns, wanted or (), strict=True)
        exact = [pattern == field for pattern, field in pairs if pattern != "*"]
        if all(exact) and len(exact) > most:
            best, most = _driver_of(module), len(exact)
    return best


def modalias(device: PciDevice) -> str | None:
    """Return the ``modalias`` of a device as in sysfs, or ``None`` if one of its ids is unknown.

    The aliases of VFIO drivers begin with ``vfio_``.
    """
    fields = _fields(device)
    return None if fields is None else "pci:" + "".join(map("".join, zip(ALIAS_FIELDS, fields, strict=True)))


def _fields(device: PciDevice) -> list[str] | None:
    """Return the fields of an alias, or ``None`` if an id or the class of the device is unknown."""
    ids = (device.vendor_id, device.device_id, device.subsystem_vendor_id, device.subsystem_device_id)
    code = device.class_code
    if code is None or None in ids:
        return None
    numbers = [number for number in (*ids, *code.to_bytes(3, "big")) if number is not None]
    return [f"{number:0{width}X}" for number, width in zip(numbers, ALIAS_FIELDS.values(), strict=True)]


def _aliases(tree: Tree) -> str:
    release = find_release(tree)
    if release is None or "/" in release:
        return ""
    return tree.find(f"/lib/modules/{release}/modules.alias") or ""


def _driver_of(module: str) -> str:
    """Return the driver's name: a variant's is the name of its module, vfio-pci's is not."""
    return VFIO_PCI if module == "vfio_pci" else module
