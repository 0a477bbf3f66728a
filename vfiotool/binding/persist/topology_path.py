"""Topological paths, which name the place of a device without bus numbers: ``pci0000:00/02.0/00.0``.

A path is the kernel's name of the host bridge, then the device and function number of each hop. Bus
numbers are assigned again at each boot, and shift if a bridge in front is added or removed; slots do not.
"""

from __future__ import annotations

import re

from vfiotool.errors import DeviceNotFoundError, UnsupportedError
from vfiotool.host.attributes import addresses, device_path
from vfiotool.host.pci_domains import SYS_DEVICES
from vfiotool.host.tree import Tree

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:([0-9a-f]{2}\.[0-7])")
_HOP = re.compile(r"[0-9a-f]{2}\.[0-7]")
_HOST_BRIDGE = re.compile(r"pci([0-9a-f]{4,8}):([0-9a-f]{2})")
_PATH = re.compile(r"[A-Za-z0-9_.:-]+(/[A-Za-z0-9_.:-]+)+")


def read_path(tree: Tree, address: str) -> str:
    """Return the topological path of a device.

    Raises:
        DeviceNotFoundError: there is no device at the address.
        UnsupportedError: the device is not below a PCI host bridge, or its path has unusual characters.
    """
    if not tree.exists(device_path(address)):
        raise DeviceNotFoundError(f"there is no PCI device {address}", hint="'vfiotool list' shows all")
    folder = tree.resolve(device_path(address))
    below = folder.removeprefix(SYS_DEVICES)
    parts = [
        match[1] if (match := _ADDRESS.fullmatch(part)) else part for part in below.strip("/").split("/")
    ]
    path = "/".join(parts)
    if not is_path(path):
        raise UnsupportedError(
            f"{address} has no place that lasts over reboots: its folder is {folder}",
            hint="bind it after each boot with 'vfiotool bind'",
        )
    return path


def is_path(text: str) -> bool:
    """Return True if a text is a topological path; no character of a path is special to udev or a shell."""
    parts = text.split("/")
    has_bridge = any(_HOST_BRIDGE.fullmatch(part) for part in parts)
    return (
        bool(_PATH.fullmatch(text)) and has_bridge and bool(_HOP.fullmatch(parts[-1])) and ".." not in parts
    )


def devpath_pattern(path: str) -> str:
    """Return the glob that matches the device's folder below ``/sys``, for udev's ``DEVPATH`` and a shell.

    Bus numbers are wildcards, except for root buses, whose numbers do not change.
    """
    parts = ["/devices"]
    domain = bus = ""
    for part in path.split("/"):
        if bridge := _HOST_BRIDGE.fullmatch(part):
            domain, bus = bridge[1], bridge[2]
            parts.append(part)
        elif domain and _HOP.fullmatch(part):
            parts.append(f"{domain}:{bus}:{part}")
            bus = "??"
        else:
            parts.append(part)
    return "/".join(parts)


def find_at(tree: Tree, path: str) -> str | None:
    """Return the address of the device that is at a path now, or ``None``.

    VFs are left out: the kernel places them beside their PF, on another bus, where a VF can have the path
    of its PF.
    """
    for address in addresses(tree):
        if address.endswith(path.rpartition("/")[2]) and not tree.exists(f"{device_path(address)}/physfn"):
            try:
                found = read_path(tree, address)
            except (DeviceNotFoundError, UnsupportedError):
                continue
            if found == path:
                return address
    return None
