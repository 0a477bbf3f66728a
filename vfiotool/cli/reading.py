"""The verbs list, groups and show. Imports no click, and no dataclasses for list: see ``vfiotool.cli``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vfiotool.errors import SelectorError
from vfiotool.host.attributes import addresses, read_fields
from vfiotool.host.tree import Tree
from vfiotool.pci.names import PciNames
from vfiotool.render.documents import write_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vfiotool.host.devices import PciDevice

_MOST_DIGITS = 10  # the kernel's group numbers are of type int


def list_devices(tree: Tree, state_dir: str, selectors: Sequence[str], as_json: bool) -> None:
    """Print the selected devices, or all devices if there are no selectors."""
    chosen = addresses(tree)
    if selectors:
        from vfiotool.host.selectors import select

        chosen = select(tree, selectors)
    fields = read_fields(tree, chosen, PciNames.of_this_machine(), state_dir=state_dir)
    if as_json:
        write_document("list", {"devices": fields})
        return
    from vfiotool.host.devices import PciDevice
    from vfiotool.render.tables import print_devices

    print_devices([PciDevice(**one) for one in fields])


def list_groups(tree: Tree, state_dir: str, numbers: Sequence[str], as_json: bool) -> None:
    """Print the groups with these numbers, or all groups if there are no numbers."""
    from vfiotool.host.groups import group_ids, read_group, read_groups, with_members

    devices = _all_devices(tree, state_dir)
    if numbers:
        groups = [read_group(tree, _group_number(number), devices) for number in numbers]
    else:
        groups = read_groups(tree, group_ids(tree), devices)
    groups = with_members(tree, groups, devices)
    if as_json:
        write_document("groups", {"groups": groups})
        return
    if not groups:
        _print_no_groups(tree, state_dir)
        return
    from vfiotool.render.tables import print_groups

    print_groups(groups, devices)


def _print_no_groups(tree: Tree, state_dir: str) -> None:
    """Print why there are no groups, as doctor knows it."""
    from vfiotool.host.checks.iommu import check_iommu

    verdict = check_iommu(tree, state_dir)
    said = "" if verdict.ok is None else "this machine has no IOMMU groups: "
    print(f"{said}{verdict.detail}", file=sys.stderr)
    if verdict.remedy is not None:
        print(f"hint: {verdict.remedy}", file=sys.stderr)


def show_device(tree: Tree, state_dir: str, selector: Sequence[str], as_json: bool) -> None:
    """Print all details of the device that the selector names."""
    from vfiotool.host.device_details import read_details
    from vfiotool.host.devices import find_device
    from vfiotool.host.selectors import select_meant

    (address,) = select_meant(tree, selector, several=False)
    devices = _all_devices(tree, state_dir)
    details = read_details(tree, find_device(devices, address), devices)
    if as_json:
        write_document("show", details)
        return
    from vfiotool.host.freeing import how_to_free
    from vfiotool.render.tables import print_details

    known = [details.device if one.address == address else one for one in devices]
    print_details(details, how_to_free(tree, known, address, state_dir=state_dir))


def _all_devices(tree: Tree, state_dir: str) -> list[PciDevice]:
    from vfiotool.host.devices import read_devices

    return read_devices(tree, addresses(tree), PciNames.of_this_machine(), state_dir=state_dir)


def _group_number(text: str) -> int:
    number = text.removeprefix("group:")
    if not number.isdecimal() or len(number) > _MOST_DIGITS:
        raise SelectorError(f"'{text}' is not a group", hint="a group is a number: see 'vfiotool groups'")
    return int(number)
