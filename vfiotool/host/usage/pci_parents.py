"""The PCI devices behind an interface, a disk or another class device (a name in ``/sys/class``)."""

from __future__ import annotations

from collections.abc import Iterable

from vfiotool.host.pci_domains import domain_makers, functions
from vfiotool.host.tree import Tree

_NAMED = ("net", "block", "nvme")


def pci_parents(tree: Tree, kind: str, name: str) -> list[str]:
    """Return the nearest PCI parents of a class device; an empty list for a virtual device.

    With CONFIG_NVME_MULTIPATH, sysfs has an NVMe namespace below its subsystem, not below a PCI device. All
    controllers of the subsystem are then its parents.
    """
    return _nearest(_paths(tree, kind, name))


def required_devices(tree: Tree, kind: str, name: str) -> frozenset[str]:
    """Return the PCI devices that a class device needs: its nearest parents, and the devices that create
    their PCI domain, such as an Intel VMD. Without the VMD's driver the whole domain disappears."""
    return required_by(_paths(tree, kind, name))


def required_by(paths: Iterable[str]) -> frozenset[str]:
    """Return the PCI devices that the devices at these paths in ``/sys/devices`` need, as above."""
    known = list(paths)
    return frozenset([*_nearest(known), *(above for path in known for above in domain_makers(path))])


def find_pci_parents(tree: Tree, name: str) -> list[str]:
    """Return the PCI parents of the interface, disk or NVMe controller of this name, sorted."""
    return sorted(
        {
            address
            for kind in _NAMED
            if tree.exists(f"/sys/class/{kind}/{name}")
            for address in pci_parents(tree, kind, name)
        }
    )


def with_controllers(tree: Tree, path: str) -> list[str]:
    """Return the path of a device in ``/sys/devices``; for an NVMe namespace, a path for each controller."""
    folder = _subsystem(path)
    if folder is None:
        return [path]
    return [tree.resolve(f"{folder}/{entry}") for entry in tree.find_names(folder)]


def _paths(tree: Tree, kind: str, name: str) -> list[str]:
    return with_controllers(tree, tree.resolve(f"/sys/class/{kind}/{name}"))


def _subsystem(path: str) -> str | None:
    """Return the directory of the NVMe subsystem that a namespace or a partition lies in, if any."""
    if functions(path):
        return None
    parts = path.split("/")
    depth = next(
        (at for at, part in enumerate(parts) if part.startswith("nvme-subsys") and part[11:].isdecimal()),
        None,
    )
    return None if depth is None or depth + 1 == len(parts) else "/".join(parts[: depth + 1])


def _nearest(paths: Iterable[str]) -> list[str]:
    return sorted({chain[-1] for path in paths if (chain := functions(path))})
