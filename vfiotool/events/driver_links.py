"""Changes of the driver of each device, by polling: a blocked unbind has no uevent until it ends."""

from __future__ import annotations

from collections.abc import Iterator

from vfiotool.events.entry import TimelineEntry, now
from vfiotool.host.attributes import DEVICES, device_path
from vfiotool.host.tree import Tree

_NO_DRIVER = "none"
_EVERY = 0.1  # seconds between polls: a machine has hundreds of devices


class DriverLinks:
    """Polls the ``driver`` links of all devices for changes. Reading a link never blocks."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._drivers = self._look()
        self._looked = now()

    def fileno(self) -> None:
        return None

    def read(self) -> Iterator[TimelineEntry]:
        if now() - self._looked < _EVERY:
            return
        former, self._drivers = self._drivers, self._look()
        self._looked = now()
        for address in sorted(former.keys() | self._drivers.keys()):
            event = _change(former.get(address, ""), self._drivers.get(address, ""))
            if event:
                driver = self._drivers.get(address)
                detail = f"was {former[address] or _NO_DRIVER}" if event == "driver" else ""
                yield TimelineEntry(now(), "sysfs", event, address=address, driver=driver, detail=detail)

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def _look(self) -> dict[str, str | None]:
        addresses = self._tree.find_names(DEVICES)
        return {one: self._tree.find_link(f"{device_path(one)}/driver") for one in addresses}


def _change(before: str | None, after: str | None) -> str | None:
    """Return the name of the change between two drivers; ``""`` stands for a device that does not exist."""
    if before == after:
        return None
    if before == "":
        return "appeared"
    return "gone" if after == "" else "driver"
