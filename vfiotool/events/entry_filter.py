"""A filter of the timeline: the entries about the devices that a user watches."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vfiotool.events.entry import TimelineEntry
from vfiotool.host.attributes import find_group
from vfiotool.host.tree import Tree

_GRAVE = ("emergency", "alert", "critical", "error", "warning", "missed")
_ABOUT = re.compile(r"vfio|iommu|dmar|amd-vi", re.IGNORECASE)


class EntryFilter:
    """Selects the entries about some devices, or about all devices if ``addresses`` is empty.

    An entry that names a device or a group is shown if these devices include it. A record of the kernel's
    log that names neither is shown if it is a warning or worse, or mentions VFIO or the IOMMU. Any other
    entry that names neither is always shown. Threads may share the filter.
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
