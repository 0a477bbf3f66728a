"""Which entries of the timeline are about the devices that a user watches."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vfiotool.events.entry import TimelineEntry
from vfiotool.host.attributes import find_group
from vfiotool.host.tree import Tree

_GRAVE = ("emergency", "alert", "critical", "error", "warning", "missed")
_ABOUT = re.compile(r"vfio|iommu|dmar|amd-vi", re.IGNORECASE)


class EntryFilter:
    """What is shown of some devices, or of all where there are none. Threads may share it.

    An entry that names a device or a group is shown where that is one of them; the kernel's log also with
    its warnings and what it says of VFIO and the IOMMU; functions of the kernel that name neither, always.
    """

    def __init__(self, tree: Tree, addresses: Iterable[str]) -> None:
        self._addresses = frozenset(addresses)
        groups = (find_group(tree, address) for address in self._addresses)
        self._groups = frozenset(group for group in groups if group is not None)

    def is_shown(self, entry: TimelineEntry) -> bool:
        if entry.address is None and entry.group is None:
            return entry.source != "kmsg" or entry.event in _GRAVE or _ABOUT.search(entry.detail) is not None
        if not self._addresses or entry.address in self._addresses:
            return True
        return entry.address is None and entry.group in self._groups
