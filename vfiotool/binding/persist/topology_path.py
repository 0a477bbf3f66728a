"""Where a device is plugged in, whatever number its bus has: ``pci0000:00/02.0/00.0``.

A path names the host bridge as the kernel does, then the device and function of each hop. Bus numbers
are given out anew at each boot, and shift when a bridge comes or goes before; slots do not.
"""

from __future__ import annotations

import re

from vfiotool.errors import DeviceNotFoundError, UnsupportedError
from vfiotool.host.attributes import addresses, device_path
from vfiotool.host.tree import Tree

_SYS_DEVICES = "/sys/devices/"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:([0-9a-f]{2}\.[0-7])")
_HOP = re.compile(r"[0-9a-f]{2}\.[0-7]")
_HOST_BRIDGE = re.compile(r"pci([0-9a-f]{4,8}):([0-9a-f]{2})")
_PATH = re.compile(r"[A-Za-z0-9_.:-]+(/[A-Za-z0-9_.:-]+)+")


def read_path(tree: Tree, address: str) -> str:
    """Return the topological path of a device.

    Raises:
        DeviceNotFoundError: there is no such device.
        UnsupportedError: it has no place below a PCI host bridge, or an odd one.
    """
    if not tree.exists(device_path(address)):
        raise DeviceNotFoundError(f"there is no PCI device {address}", hint="'vfiotool list' shows all")
    folder = tree.resolve(device_path(address))
    below = folder.removeprefix(_SYS_DEVICES)
    parts = [
        match[1] if (match := _ADDRESS.fullmatch(part)) else part for part in below.strip("/").split("/")
    ]
    path = "/".join(parts)
    if not is_path(path):
        raise UnsupportedError(
            f"{address} has no place that lasts over reboots: it is at {folder}",
            hint="bind it after each boot with 'vfiotool bind'",
        )
    return path


def is_path(text: str) -> bool:
    """Say whether a text is a topological path; one that is has no character with a meaning to udev."""
    parts = text.split("/")
    has_bridge = any(_HOST_BRIDGE.fullmatch(part) for part in parts)
    return (
        bool(_PATH.fullmatch(text)) and has_bridge and bool(_HOP.fullmatch(parts[-1])) and ".." not in parts
    )


def pattern(path: str) -> str:
    """Return the glob, for udev's ``DEVPATH`` and a shell, that the device's folder matches below ``/sys``.

    Only a root bus keeps its number.
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

    VFs are passed over: the kernel puts them beside their PF, on a bus of their own, where one can
    have its PF's path.
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
