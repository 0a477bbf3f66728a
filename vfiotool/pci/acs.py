"""Access Control Services (ACS), judged as the kernel does: does a function isolate peer-to-peer requests?

Source: ``pci_acs_enabled()`` in drivers/pci/pci.c, with the flags that drivers/iommu/iommu.c asks for; PCI
Express Base section 7.7.7. The kernel's quirks for single models (drivers/pci/quirks.c) are not included.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vfiotool.pci.capability_reader import CutOffError, Reader, find_reader, names_of

_EXPRESS = 0x10
_ACS = 0x0D

_SERVICES = (
    "source validation",
    "translation blocking",
    "P2P request redirect",
    "P2P completion redirect",
    "upstream forwarding",
    "P2P egress control",
    "direct translated P2P",
)
_WANTED = (
    "source validation",
    "P2P request redirect",
    "P2P completion redirect",
    "upstream forwarding",
)


@dataclass(frozen=True, slots=True)
class AccessControl:
    """Access Control Services: the services that a function supports, and those that are enabled."""

    supported: tuple[str, ...]
    enabled: tuple[str, ...]

    @classmethod
    def read(cls, at: Reader) -> AccessControl:
        return cls(names_of(at.u16(4), _SERVICES), names_of(at.u16(6), _SERVICES))


class PortType(enum.IntEnum):
    """The device/port type in the PCI Express capability, which conventional PCI functions lack."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM = 5
    DOWNSTREAM = 6
    PCIE_TO_PCI = 7
    PCI_TO_PCIE = 8
    INTEGRATED_ENDPOINT = 9
    EVENT_COLLECTOR = 10


WITHOUT_LINK = (PortType.INTEGRATED_ENDPOINT, PortType.EVENT_COLLECTOR)
"""The parts of the root complex, which have no link."""
FACING_DOWN = (PortType.ROOT_PORT, PortType.DOWNSTREAM, PortType.PCI_TO_PCIE)
"""The ports whose link is to the device below them, which can be in a slot."""

_NEVER_GUARDED = (None, PortType.PCIE_TO_PCI, PortType.PCI_TO_PCIE, PortType.EVENT_COLLECTOR)
_ALWAYS_JUDGED = (PortType.ROOT_PORT, PortType.DOWNSTREAM)
_JUDGED_IN_MULTIFUNCTION = (
    PortType.ENDPOINT,
    PortType.LEGACY_ENDPOINT,
    PortType.UPSTREAM,
    PortType.INTEGRATED_ENDPOINT,
)


def port_type(config: bytes) -> int | None:
    """Return the device/port type of a function (see ``PortType``), or ``None`` for conventional PCI."""
    at = find_reader(config, _EXPRESS, extended=False)
    return None if at is None else read_port_type(at)


def read_port_type(at: Reader) -> int:
    """Return the device/port type in a PCI Express capability."""
    return at.u8(2) >> 4


def weakness(config: bytes, *, multifunction: bool) -> str | None:
    """Return why the kernel does not rely on a function's ACS: ``without ACS``, or the disabled services.

    ``None`` if the kernel relies on it. A service that the capability does not support counts as always
    enabled; only a supported service that is off is a weakness. The only function of a device needs no ACS,
    unless it is a root port or a downstream port.
    """
    kind = port_type(config)
    if kind in _NEVER_GUARDED:
        return "without ACS"
    if kind in _ALWAYS_JUDGED or (kind in _JUDGED_IN_MULTIFUNCTION and multifunction):
        return _weakness_of_capability(config)
    return None


def _weakness_of_capability(config: bytes) -> str | None:
    at = find_reader(config, _ACS, extended=True)
    try:
        services = None if at is None else AccessControl.read(at)
    except CutOffError:
        services = None
    if services is None:
        return "without ACS"
    off = [name for name in _WANTED if name in services.supported and name not in services.enabled]
    return f"whose ACS has {', '.join(off)} disabled" if off else None
