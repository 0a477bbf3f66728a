"""The PCI functions and host bridges above a device, and the functions that make a PCI domain of their own.

The path of a device in ``/sys/devices`` names both: ``pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0``. A
function is a bridge to what is below it only within one domain. A function with a host bridge below it makes
the domain of this host bridge, such as an Intel VMD, an integrated endpoint (drivers/pci/controller/vmd.c):
without its driver the whole domain disappears. The VMD issues the DMA of its domain under its own requester
id (``pci_real_dma_dev()`` in arch/x86/pci/common.c).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

from vfiotool.host.attributes import addresses, device_path
from vfiotool.host.tree import Tree
from vfiotool.pci.address import is_full_address

SYS_DEVICES = "/sys/devices/"
_HOST_BRIDGE = re.compile("pci([0-9a-f]{4,8}):[0-9a-f]{2}")


def functions(path: str) -> list[str]:
    """Return the addresses of the PCI functions in a path in ``/sys/devices``, outermost first."""
    return [part for part in path.split("/") if is_full_address(part)]


def is_host_bridge(name: str) -> bool:
    """Return True if a folder in ``/sys/devices`` is a PCI host bridge: ``pci`` and the number of its bus."""
    return _HOST_BRIDGE.fullmatch(name) is not None


def domain_makers(path: str) -> list[str]:
    """Return the functions in a path that make the PCI domain of what is below them, outermost first."""
    pairs = itertools.pairwise(path.split("/"))
    return [above for above, below in pairs if is_full_address(above) and is_host_bridge(below)]


def bridges_above(path: str) -> tuple[str, ...]:
    """Return the bridges between the device at a path and its host bridge, nearest first."""
    found: list[str] = []
    for part in path.split("/")[:-1]:
        if is_host_bridge(part):
            found = []
        elif is_full_address(part):
            found.append(part)
    return tuple(reversed(found))


def devices_by_maker(tree: Tree, wanted: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Return the devices in the PCI domains that these devices make, by the address of the maker.

    A device that makes no domain is left out.
    """
    made = {address: _domains(tree, address) for address in wanted}
    if not any(made.values()):
        return {}
    paths = {one: tree.resolve(device_path(one)) for one in addresses(tree)}
    return {
        address: tuple(one for one, path in paths.items() if address in domain_makers(path))
        for address, domains in made.items()
        if domains
    }


def domains_text(devices: Iterable[str]) -> str:
    """Return the PCI domains of devices as text: ``PCI domain 10000``."""
    numbers = list(dict.fromkeys(device.partition(":")[0] for device in devices))
    return f"PCI domain{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def domain_note(maker: str, driver: str, devices: Iterable[str]) -> str:
    """Return why VFIO cannot use a device of a domain while the maker of the domain is on a host driver."""
    domain = domains_text(devices)
    note = f"{maker} ({driver}) issues the DMA of {domain}, and without {driver} the domain is gone"
    setup = "; the firmware setup of most machines can turn VMD off, and its devices are then on their own"
    return note + (setup if driver == "vmd" else "")


def _domains(tree: Tree, address: str) -> list[str]:
    """Return the host bridges in the folder of a device."""
    return [name for name in tree.find_names(device_path(address)) if is_host_bridge(name)]
