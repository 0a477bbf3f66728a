"""From the ``ADDRESS`` arguments of the command line to PCI addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vfiotool.errors import DeviceNotFoundError, SelectorError
from vfiotool.host.attributes import addresses, device_path, read_id
from vfiotool.host.tree import Tree
from vfiotool.host.usage.pci_parents import find_pci_parents
from vfiotool.pci.address import HEX_DIGITS, is_address, parse_address
from vfiotool.pci.ids import hex_text
from vfiotool.pci.names import PciNames

_FORMS = (
    "use an address (0000:03:00.0, 03:00.0), a glob (0000:03:*), vendor:device (8086:10d3), group:N, "
    "class:0108, a network interface, a block or NVMe device, or a class name (see 'vfiotool list')"
)


def select(tree: Tree, selectors: Iterable[str]) -> list[str]:
    """Return the addresses that the selectors match, each once, in the order of the selectors.

    Raises:
        SelectorError: a selector is malformed.
        DeviceNotFoundError: a selector matches no device.
    """
    present = addresses(tree)
    chosen: dict[str, None] = {}
    for selector in selectors:
        chosen.update(dict.fromkeys(_matches(tree, selector, present)))
    return list(chosen)


def select_meant(tree: Tree, selectors: Sequence[str], *, several: bool) -> list[str]:
    """Return the addresses that the selectors match; unless ``several``, each must match a single device.

    Raises:
        SelectorError: a selector is malformed, or matches more than one device without ``several``.
        DeviceNotFoundError: a selector matches no device.
    """
    present = addresses(tree)
    chosen: dict[str, None] = {}
    for selector in selectors:
        found = _matches(tree, selector, present)
        if len(found) > 1 and not several:
            raise SelectorError(
                f"'{selector}' matches {len(found)} devices: {', '.join(found)}",
                hint="name a single device, or add --all to select all of them",
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _matches(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    name = selector.removeprefix("/dev/")
    found = _search(name)(tree, name, present)
    if not found:
        raise DeviceNotFoundError(
            f"no PCI device matches '{selector}'", hint="'vfiotool list' shows all devices"
        )
    return found


def _search(selector: str) -> Callable[[Tree, str, Sequence[str]], list[str]]:
    """Choose the search by the form of the selector alone."""
    if not selector or not selector.isprintable() or "/" in selector:
        raise SelectorError(f"{selector!r} is not a valid ADDRESS", hint=_FORMS)
    if any(character in selector for character in "*?["):
        return _by_glob
    if selector.startswith("group:"):
        return _by_group
    if selector.startswith("class:"):
        return _by_class_number
    if is_address(selector):
        return _by_address
    if _ids(selector) is not None:
        return _by_ids
    if ":" in selector:
        parse_address(selector)  # an address by its form: raise the reason why it is malformed
    return _by_name


def _by_address(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    address = parse_address(selector)
    return [address] if address in present else []


def _by_glob(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    from fnmatch import fnmatchcase

    pattern = selector.lower()
    return [address for address in present if fnmatchcase(address, pattern)]


def _by_group(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    number = selector.removeprefix("group:")
    if not number.isdecimal():
        raise SelectorError(f"'{selector}' is not a group", hint="a group looks like group:7")
    links = {address: tree.find_link(f"{device_path(address)}/iommu_group") for address in present}
    return [address for address, group in links.items() if group == (number.lstrip("0") or "0")]


def _by_ids(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    wanted = _ids(selector)
    return [
        address
        for address in present
        if (read_id(tree, address, "vendor"), read_id(tree, address, "device")) == wanted
    ]


def _by_name(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    """Find the PCI parents of an interface, a disk or a partition of this name, else a class."""
    return (
        find_pci_parents(tree, selector)
        or find_pci_parents(tree, _first_name(tree, selector))
        or _by_class(tree, selector, present)
    )


def _first_name(tree: Tree, interface: str) -> str:
    """Return the primary name of an interface, as in sysfs; an interface can have alternative names
    (``ip link property``).

    This call resolves names of up to 15 characters. Any other text is returned unchanged.
    """
    if not tree.is_live:
        return interface
    import socket

    try:
        return socket.if_indextoname(socket.if_nametoindex(interface))
    except OSError:
        return interface


def _by_class_number(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    """Find a class, a subclass or a programming interface by its two, four or six digits."""
    digits = selector.removeprefix("class:").lower()
    if len(digits) not in (2, 4, 6) or not HEX_DIGITS.issuperset(digits):
        raise SelectorError(f"'{selector}' is not a class", hint="a class looks like class:02 or class:0108")
    return [one for one in present if hex_text(read_id(tree, one, "class"), 6).startswith(digits)]


def _by_class(tree: Tree, selector: str, present: Sequence[str]) -> list[str]:
    names, wanted = PciNames.of_this_machine(), selector.lower()
    codes = {address: read_id(tree, address, "class") for address in present}
    known = {address: names.pci_class(code) for address, code in codes.items() if code is not None}
    return [address for address, name in known.items() if name.lower() == wanted]


def _ids(selector: str) -> tuple[int, int] | None:
    vendor, _, device = selector.partition(":")
    if len(vendor) != 4 or len(device) != 4 or not HEX_DIGITS.issuperset(vendor + device):
        return None
    return int(vendor, 16), int(device, 16)
