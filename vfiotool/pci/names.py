"""Names of vendors, devices and classes, from the pci.ids list that the machine has.

The list is searched as bytes, not parsed: a listing asks for some twenty of its forty thousand
entries. Where there is no list, or no entry, the numbers stand in, as lspci shows them.
"""

from __future__ import annotations

import re

LISTS = (
    "/usr/share/misc/pci.ids",
    "/usr/share/hwdata/pci.ids",
    "/usr/share/pci.ids",
    "/var/lib/pciutils/pci.ids",
)
# A section's own lines are indented; a vendor's begins with its number, a class's with "C ".
_NEXT_SECTION = re.compile(rb"\n[0-9a-fC]")


class PciNames:
    """Look names up in a pci.ids text. Threads may share it."""

    def __init__(self, text: bytes) -> None:
        self._text = b"\n" + text
        classes = self._text.find(b"\nC 00  ")
        self._classes_at = classes if classes >= 0 else len(self._text)
        self._sections: dict[int, tuple[int, int]] = {}

    @classmethod
    def of_this_machine(cls) -> PciNames:
        """Read the first list there is; without one, all names fall back to numbers."""
        for path in LISTS:
            try:
                with open(path, "rb") as file:
                    return cls(file.read())
            except OSError:
                continue
        return cls(b"")

    def vendor(self, vendor_id: int) -> str:
        """Return the vendor's name, or ``Vendor 8086``."""
        start, _end = self._vendor_section(vendor_id)
        return self._name(start, 7) if start >= 0 else f"Vendor {vendor_id:04x}"

    def device(self, vendor_id: int, device_id: int) -> str:
        """Return the device's name, or ``Device 10d3``."""
        at = self._within(self._vendor_section(vendor_id), b"\n\t%04x  " % device_id)
        return self._name(at, 8) if at >= 0 else f"Device {device_id:04x}"

    def pci_class(self, class_code: int) -> str:
        """Return the name of the subclass of a 24-bit class code, or of its class, or ``Class 0200``."""
        base, sub = class_code >> 16 & 0xFF, class_code >> 8 & 0xFF
        at = self._text.find(b"\nC %02x  " % base, self._classes_at)
        within = self._within(self._section(at), b"\n\t%02x  " % sub)
        if within >= 0:
            return self._name(within, 6)
        return self._name(at, 7) if at >= 0 else f"Class {class_code >> 8:04x}"

    def _vendor_section(self, vendor_id: int) -> tuple[int, int]:
        """Find a vendor's section once: a machine has many devices of few vendors."""
        if vendor_id not in self._sections:
            start = self._text.find(b"\n%04x  " % vendor_id, 0, self._classes_at)
            self._sections[vendor_id] = self._section(start)
        return self._sections[vendor_id]

    def _section(self, start: int) -> tuple[int, int]:
        """Return where the section that begins at ``start`` begins and ends; -1 is nowhere."""
        following = _NEXT_SECTION.search(self._text, start + 1) if start >= 0 else None
        return start, following.start() if following else len(self._text)

    def _within(self, section: tuple[int, int], entry: bytes) -> int:
        return self._text.find(entry, *section) if section[0] >= 0 else -1

    def _name(self, at: int, skip: int) -> str:
        end = self._text.find(b"\n", at + 1)
        name = self._text[at + skip : end if end >= 0 else len(self._text)]
        return name.decode("utf-8", "replace").strip()
