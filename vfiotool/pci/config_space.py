"""Configuration space, decoded from bytes. The device is not trusted: every offset is checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfiotool.pci import identity

HEADER_SIZE = identity.HEADER_SIZE
STANDARD_SIZE = 256
EXTENDED_SIZE = 4096
HEADER_TYPE = 0x0E
MULTIFUNCTION = 0x80
BRIDGE_HEADERS = (1, 2)
"""The header types of bridges: PCI-to-PCI and CardBus."""

_STATUS = 0x06
_STATUS_CAP_LIST = 0x10
_CAPABILITY_POINTER = {0: 0x34, 1: 0x34, 2: 0x14}
_END_OF_LIST = 0xFF
_PCI_X, _EXPRESS = 0x07, 0x10
_PCI_X_STATUS = 4
_PCI_X_MODE_2 = 3 << 30  # the bits 266MHZ and 533MHZ

# PCI Code and ID Assignment Specification, "Capability IDs" and "Extended Capability IDs".
CAPABILITY_NAMES = {
    0x00: "Null",
    0x01: "Power Management",
    0x02: "AGP",
    0x03: "Vital Product Data",
    0x04: "Slot Identification",
    0x05: "MSI",
    0x06: "CompactPCI Hot Swap",
    0x07: "PCI-X",
    0x08: "HyperTransport",
    0x09: "Vendor Specific",
    0x0A: "Debug Port",
    0x0B: "CompactPCI Central Resource Control",
    0x0C: "Hot-Plug Controller",
    0x0D: "Bridge Subsystem Vendor",
    0x0E: "AGP 8x",
    0x0F: "Secure Device",
    0x10: "PCI Express",
    0x11: "MSI-X",
    0x12: "SATA",
    0x13: "Advanced Features",
    0x14: "Enhanced Allocation",
    0x15: "Flattening Portal Bridge",
}
EXTENDED_CAPABILITY_NAMES = {
    0x00: "Null",
    0x01: "Advanced Error Reporting",
    0x02: "Virtual Channel",
    0x03: "Device Serial Number",
    0x04: "Power Budgeting",
    0x05: "Root Complex Link Declaration",
    0x06: "Root Complex Internal Link Control",
    0x07: "Root Complex Event Collector",
    0x08: "Multi-Function Virtual Channel",
    0x09: "Virtual Channel (MFVC)",
    0x0A: "Root Complex Register Block",
    0x0B: "Vendor Specific",
    0x0C: "Configuration Access Correlation",
    0x0D: "Access Control Services",
    0x0E: "Alternative Routing-ID",
    0x0F: "Address Translation Services",
    0x10: "SR-IOV",
    0x11: "Multi-Root I/O Virtualization",
    0x12: "Multicast",
    0x13: "Page Request Interface",
    0x15: "Resizable BAR",
    0x16: "Dynamic Power Allocation",
    0x17: "TPH Requester",
    0x18: "Latency Tolerance Reporting",
    0x19: "Secondary PCI Express",
    0x1A: "Protocol Multiplexing",
    0x1B: "Process Address Space ID",
    0x1C: "LN Requester",
    0x1D: "Downstream Port Containment",
    0x1E: "L1 PM Substates",
    0x1F: "Precision Time Measurement",
    0x20: "PCI Express over M-PHY",
    0x21: "FRS Queuing",
    0x22: "Readiness Time Reporting",
    0x23: "Designated Vendor Specific",
    0x24: "VF Resizable BAR",
    0x25: "Data Link Feature",
    0x26: "Physical Layer 16.0 GT/s",
    0x27: "Lane Margining",
    0x28: "Hierarchy ID",
    0x29: "Native PCIe Enclosure Management",
    0x2A: "Physical Layer 32.0 GT/s",
    0x2B: "Alternate Protocol",
    0x2C: "System Firmware Intermediary",
    0x2D: "Shadow Functions",
    0x2E: "Data Object Exchange",
    0x2F: "Device 3",
    0x30: "Integrity and Data Encryption",
    0x31: "Physical Layer 64.0 GT/s",
    0x32: "Flit Logging",
    0x33: "Flit Performance Measurement",
    0x34: "Flit Error Injection",
    0x35: "Streamlined Virtual Channel",
    0x36: "MMIO Register Block Locator",
}


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability: its id, the offset of its header in bytes, and its name.

    ``version`` is in the header of an extended capability, and ``None`` for a standard one.
    """

    id: int
    offset: int
    extended: bool
    name: str
    version: int | None


def header_type(config: bytes) -> int | None:
    """Return the header type without its multifunction bit: 0 endpoint, 1 bridge, 2 CardBus."""
    return config[HEADER_TYPE] & ~MULTIFUNCTION if len(config) > HEADER_TYPE else None


def has_capabilities(config: bytes) -> bool:
    """Return True if the status register says that there is a list of capabilities."""
    return len(config) > _STATUS and bool(config[_STATUS] & _STATUS_CAP_LIST)


def capabilities(config: bytes) -> tuple[Capability, ...]:
    """Return the capabilities in the order of their lists, standard capabilities first.

    A list ends at the first header that lies outside its space or that was visited before, so a broken
    device gives a short result and no endless loop. The id 0xff ends the standard list, too. Only a function
    with PCI Express, or with PCI-X of mode 2, has extended capabilities: without them, the space from 0x100
    on can have anything, such as a copy of the header. Fewer than 256 bytes give an empty result; the kernel
    shows an unprivileged reader only 64. So does a type of header that PCI does not define.

    Source: PCI Local Bus 3.0 section 6.7; PCI Express Base section 7.6.3; ``__pci_find_next_cap_ttl()`` in
    drivers/pci/pci.c, ``pci_cfg_space_size()`` in drivers/pci/probe.c (where a host bridge needs neither).
    """
    if len(config) < STANDARD_SIZE or identity.is_silent(config):
        return ()
    standard = _standard(config)
    if any(_has_extended_space(config, one) for one in standard):
        return (*standard, *extended_capabilities(config))
    return tuple(standard)


def extended_capabilities(config: bytes) -> tuple[Capability, ...]:
    """Return the list that starts at 0x100, even if the function has no extended capabilities.

    Use ``capabilities`` to learn what the function has. This list is for a reader that must find what could
    be an extended capability, such as one who removes serial numbers.
    """
    found: dict[int, Capability] = {}
    offset, end = STANDARD_SIZE, min(len(config), EXTENDED_SIZE)
    while STANDARD_SIZE <= offset <= end - 4 and offset not in found:
        (header,) = struct.unpack_from("<I", config, offset)
        if header in (0, 0xFFFFFFFF):
            break
        number, version = header & 0xFFFF, header >> 16 & 0xF
        name = EXTENDED_CAPABILITY_NAMES.get(number, f"Extended capability {number:04x}")
        found[offset] = Capability(number, offset, extended=True, name=name, version=version)
        offset = header >> 20 & 0xFFC
    return tuple(found.values())


def _standard(config: bytes) -> list[Capability]:
    pointer = _CAPABILITY_POINTER.get(config[HEADER_TYPE] & ~MULTIFUNCTION)
    if pointer is None or not has_capabilities(config):
        return []
    found: dict[int, Capability] = {}
    offset = config[pointer] & 0xFC
    while HEADER_SIZE <= offset < STANDARD_SIZE and offset not in found:
        number = config[offset]
        if number == _END_OF_LIST:
            break
        name = CAPABILITY_NAMES.get(number, f"Capability {number:02x}")
        found[offset] = Capability(number, offset, extended=False, name=name, version=None)
        offset = config[offset + 1] & 0xFC
    return list(found.values())


def _has_extended_space(config: bytes, one: Capability) -> bool:
    if one.id != _PCI_X:
        return one.id == _EXPRESS
    status = config[one.offset + _PCI_X_STATUS : min(one.offset + _PCI_X_STATUS + 4, STANDARD_SIZE)]
    return bool(int.from_bytes(status, "little") & _PCI_X_MODE_2)
