"""Access Control Services, as the kernel judges them: does a function keep its neighbours' requests apart?

Source: ``pci_acs_enabled()`` in drivers/pci/pci.c, with the flags that drivers/iommu/iommu.c asks for; PCI
Express Base section 7.7.7. What the kernel knows better of single models (drivers/pci/quirks.c) is not here.
"""

from __future__ import annotations

import enum

from vfiotool.pci import config as pci_config

_EXPRESS = 0x10
_FLAGS_AT = 2
_ACS = 0x0D
_ACS_SIZE = 8
_CAPABILITY_AT, _CONTROL_AT = 4, 6

_WANTED = {
    1 << 0: "source validation",
    1 << 2: "P2P request redirect",
    1 << 3: "P2P completion redirect",
    1 << 4: "upstream forwarding",
}


class PortType(enum.IntEnum):
    """What a PCI Express function is, by its capability; conventional PCI has none."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM = 5
    DOWNSTREAM = 6
    PCIE_TO_PCI = 7
    PCI_TO_PCIE = 8
    INTEGRATED_ENDPOINT = 9
    EVENT_COLLECTOR = 10


_NEVER_GUARDED = (None, PortType.PCIE_TO_PCI, PortType.PCI_TO_PCIE, PortType.EVENT_COLLECTOR)
_ALWAYS_JUDGED = (PortType.ROOT_PORT, PortType.DOWNSTREAM)
_JUDGED_IN_MULTIFUNCTION = (
    PortType.ENDPOINT,
    PortType.LEGACY_ENDPOINT,
    PortType.UPSTREAM,
    PortType.INTEGRATED_ENDPOINT,
)


def port_type(config: bytes) -> int | None:
    """Return what a function is (see ``PortType``), or ``None`` for conventional PCI."""
    offset = _offset(config, _EXPRESS, extended=False)
    return None if offset is None else config[offset + _FLAGS_AT] >> 4


def weakness(config: bytes, *, multifunction: bool) -> str | None:
    """Say why the kernel does not count on a function's ACS: ``without ACS``, or which of it is off.

    ``None`` where it does. What the capability lacks is taken as wired to on; only what could be on and is
    not counts. A function alone in its device needs no ACS, but for a port that leads downstream.
    """
    kind = port_type(config)
    if kind in _NEVER_GUARDED:
        return "without ACS"
    if kind in _ALWAYS_JUDGED or (kind in _JUDGED_IN_MULTIFUNCTION and multifunction):
        return _weakness_of_capability(config)
    return None


def _weakness_of_capability(config: bytes) -> str | None:
    offset = _offset(config, _ACS, extended=True)
    if offset is None or offset + _ACS_SIZE > len(config):
        return "without ACS"
    able = int.from_bytes(config[offset + _CAPABILITY_AT : offset + _CONTROL_AT], "little")
    on = int.from_bytes(config[offset + _CONTROL_AT : offset + _ACS_SIZE], "little")
    off = [name for flag, name in _WANTED.items() if able & ~on & flag]
    return f"whose ACS has {', '.join(off)} switched off" if off else None


def _offset(config: bytes, number: int, *, extended: bool) -> int | None:
    for capability in pci_config.capabilities(config):
        if (capability.id, capability.extended) == (number, extended):
            return capability.offset
    return None
