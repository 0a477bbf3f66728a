"""Names of vendors, devices and classes, from the machine's pci.ids list.

The list is searched as bytes and not parsed: a listing needs about twenty of its forty thousand entries.
Without a list or an entry, the result has the number instead, as in lspci.
"""

from __future__ import annotations

import re

LISTS = (
    "/usr/share/misc/pci.ids",
    "/usr/share/hwdata/pci.ids",
    "/usr/share/pci.ids",
    "/var/lib/pciutils/pci.ids",
)
# A section starts with a vendor's number or with "C " for a class; its other lines are indented. An entry of
# a section is a device or a subclass; its other lines are indented twice.
_NEXT_SECTION = re.compile(rb"\n[0-9a-fC]")
_NEXT_ENTRY = re.compile(rb"\n\t?[0-9a-fC]")


class PciNames:
    """Looks up names in the text of a pci.ids list. Threads may share it."""

    def __init__(self, text: bytes) -> None:
        self._text = b"\n" + text
        classes = self._text.find(b"\nC 00  ")
        self._classes_at = classes if classes >= 0 else len(self._text)
        self._sections: dict[int, tuple[int, int]] = {}

    @classmethod
    def of_this_machine(cls) -> PciNames:
        """Read the first list that exists; without a list, all names are numbers."""
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

    def subsystem(self, ids: tuple[int, int], subsystem: tuple[int, int]) -> str:
        """Return the name of a subsystem of the device with these ids, or ``Device a01f``.

        A subsystem with the ids of the device has the name of the device, as in lspci.
        """
        device = self._within(self._vendor_section(ids[0]), b"\n\t%04x  " % ids[1])
        at = self._within(self._part(device, _NEXT_ENTRY), b"\n\t\t%04x %04x  " % subsystem)
        if at >= 0:
            return self._name(at, 14)
        return self.device(*ids) if subsystem == ids else f"Device {subsystem[1]:04x}"

    def pci_class(self, class_code: int) -> str:
        """Return the name of the subclass of a 24-bit class code, else of its class, else ``Class 0200``."""
        base = self._class(class_code)
        at = self._subclass(class_code)
        if at >= 0:
            return self._name(at, 6)
        return self._name(base, 7) if base >= 0 else f"Class {class_code >> 8:04x}"

    def interface(self, class_code: int) -> str | None:
        """Return the name of the programming interface of a class code, or ``None`` without an entry."""
        subclass = self._part(self._subclass(class_code), _NEXT_ENTRY)
        at = self._within(subclass, b"\n\t\t%02x  " % (class_code & 0xFF))
        return self._name(at, 7) if at >= 0 else None

    def _class(self, class_code: int) -> int:
        return self._text.find(b"\nC %02x  " % (class_code >> 16 & 0xFF), self._classes_at)

    def _subclass(self, class_code: int) -> int:
        return self._within(self._section(self._class(class_code)), b"\n\t%02x  " % (class_code >> 8 & 0xFF))

    def _vendor_section(self, vendor_id: int) -> tuple[int, int]:
        """Return the section of a vendor, cached: a machine has many devices of few vendors."""
        if vendor_id not in self._sections:
            start = self._text.find(b"\n%04x  " % vendor_id, 0, self._classes_at)
            self._sections[vendor_id] = self._section(start)
        return self._sections[vendor_id]

    def _section(self, start: int) -> tuple[int, int]:
        return self._part(start, _NEXT_SECTION)

    def _part(self, start: int, following: re.Pattern[bytes]) -> tuple[int, int]:
        """Return the start and the end of the part of the list at ``start``; -1 stands for no part."""
        found = following.search(self._text, start + 1) if start >= 0 else None
        return start, found.start() if found else len(self._text)

    def _within(self, section: tuple[int, int], entry: bytes) -> int:
        return self._text.find(entry, *section) if section[0] >= 0 else -1

    def _name(self, at: int, skip: int) -> str:
        end = self._text.find(b"\n", at + 1)
        name = self._text[at + skip : end if end >= 0 else len(self._text)]
        return name.decode("utf-8", "replace").strip()
