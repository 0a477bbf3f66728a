"""Whether a driver serves a device, by the ids that the driver's module declares."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from vfiotool.host.attributes import DRIVERS
from vfiotool.host.era import find_release, modules_folder
from vfiotool.host.groups import is_vfio_driver
from vfiotool.host.tree import Tree

_WITHOUT_IDS = frozenset({"pci_stub", "uio_pci_generic", "igb_uio", "pciback", "xen_pciback"})
_PREFIX = "pci:"
_VARIANT_PREFIX = "vfio_pci:"
_ALIAS_FILES = ("modules.alias", "modules.builtin.modinfo")
_OF_ANY_DEVICE = _WITHOUT_IDS | {"vfio_pci"}
_ANY_VENDOR = _PREFIX + "v*"
_VENDOR_END = len(_PREFIX + "v00008086")


def takes_any_device(driver: str) -> bool:
    """Return True if a driver is made to drive any device: a VFIO driver, pci-stub, a UIO driver, pciback.

    These drivers have no ids of their own. They bind to a device whose ``driver_override`` names them. With
    an override, the kernel does not compare ids (``pci_match_device()``): another driver then probes a device
    that it cannot drive, which may crash the kernel.
    """
    return is_vfio_driver(driver) or driver.replace("-", "_") in _WITHOUT_IDS


def serves(tree: Tree, driver: str, alias: str) -> bool | None:
    """Return True if the ids of a driver's module match a device's ``modalias``; ``None`` if unknown.

    The result is ``None`` if modules.alias and modules.builtin.modinfo have no PCI id of the module. They do
    not have the ids that were written to ``new_id``.
    """
    module = _module_of(tree, driver)
    patterns = [pattern for name, pattern in _aliases(tree) if name == module]
    return any(_matches(alias, pattern) for pattern in patterns) if patterns else None


def native_drivers(tree: Tree, alias: str | None) -> list[str]:
    """Return the drivers whose ids match a ``modalias`` best: those with the fewest wildcards.

    A driver that takes any device is left out. The list is empty if no module declares the device's ids, or
    if ``alias`` is ``None``, as they are unknown, and has several names if these declare them alike. The name
    of a module that is not loaded stands for the name of its driver.
    """
    best: dict[str, None] = {}
    most = 0
    if alias is None:
        return []
    for module, pattern in _aliases(tree):
        literal = len(pattern.replace("*", ""))
        if literal < most or not _matches(alias, pattern):
            continue
        drivers = [name for name in _drivers_of(tree, module) if not takes_any_device(name)]
        if drivers and literal > most:
            best, most = {}, literal
        best |= dict.fromkeys(drivers)
    return list(best)


def builtin_modules(tree: Tree, alias: str) -> list[str] | None:
    """Return the modules built into the kernel whose ids match a ``modalias``; ``None`` if unknown."""
    built_in = _builtin_aliases(tree)
    if built_in is None:
        return None
    return list(dict.fromkeys(name for name, pattern in built_in if _matches(alias, pattern)))


def candidate_modules(tree: Tree, alias: str | None) -> list[str] | None:
    """Return the modules whose ids match a ``modalias``, variants of vfio-pci included; ``None`` if unknown.

    A driver that takes any device, such as vfio-pci itself, is left out.
    """
    release = find_release(tree)
    if alias is None or release is None:
        return None
    if not any(tree.exists(f"{modules_folder(tree)}/{name}") for name in _ALIAS_FILES):
        return None
    vendor = alias.removeprefix(_PREFIX)[: len("v00008086")]
    starts = tuple(f"{prefix}{one}" for prefix in (_PREFIX, _VARIANT_PREFIX) for one in (vendor, "v*"))
    try:
        known = list(_aliases(tree, starts))
    except OSError:
        return None
    matching = [name for name, pattern in known if fnmatchcase(alias, _PREFIX + pattern.partition(":")[2])]
    return [name for name in dict.fromkeys(matching) if name not in _OF_ANY_DEVICE]


def _matches(alias: str, pattern: str) -> bool:
    """Return True if a pattern matches a ``modalias``. The vendors are compared first: a match is slow."""
    is_of_vendor = pattern.startswith((alias[:_VENDOR_END], _ANY_VENDOR))
    return is_of_vendor and fnmatchcase(alias, pattern)


def _module_of(tree: Tree, driver: str) -> str:
    """Return the name of a driver's module. Before it is loaded, modprobe gets the driver's name."""
    name = tree.find_link(f"{DRIVERS}/{driver}/module") or driver
    return name.replace("-", "_")


def _drivers_of(tree: Tree, module: str) -> list[str]:
    """Return the PCI drivers of a module. The kernel shows them as ``pci:NAME`` once it is loaded."""
    links = tree.find_names(f"/sys/module/{module}/drivers")
    return [link.removeprefix(_PREFIX) for link in links if link.startswith(_PREFIX)] or [module]


def _aliases(tree: Tree, starts: tuple[str, ...] = (_PREFIX,)) -> Iterator[tuple[str, str]]:
    """Yield each alias of the running kernel with one of these starts: a module and a pattern."""
    lines = tuple(f"alias {start}" for start in starts)
    for line in (tree.find(f"{modules_folder(tree)}/modules.alias") or "").splitlines():
        if line.startswith(lines):
            pattern, _, module = line.removeprefix("alias ").rpartition(" ")
            yield module.replace("-", "_"), pattern
    yield from _builtin_aliases(tree, starts) or ()


def _builtin_aliases(tree: Tree, starts: tuple[str, ...] = (_PREFIX,)) -> list[tuple[str, str]] | None:
    """Return the PCI aliases of the modules that are built in; ``None`` before Linux 5.2.

    The entries of modules.builtin.modinfo are ``MODULE.FIELD=VALUE``, each ended by a zero byte.
    """
    info = tree.find(f"{modules_folder(tree)}/modules.builtin.modinfo")
    if info is None:
        return None
    entries = (entry.partition("=") for entry in info.split("\0"))
    return [
        (key.removesuffix(".alias"), pattern)
        for key, _, pattern in entries
        if key.endswith(".alias") and pattern.startswith(starts)
    ]
