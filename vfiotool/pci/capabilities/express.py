"""The PCI Express capability: the type of a function, and the registers that functions of this type have.

Source: PCI Express Base section 7.5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.pci.acs import FACING_DOWN, WITHOUT_LINK, PortType, read_port_type
from vfiotool.pci.capabilities.express_device import ExpressDevice, ExpressDevice2
from vfiotool.pci.capabilities.express_link import ExpressLink, ExpressLink2
from vfiotool.pci.capabilities.express_port import ExpressRoot, ExpressSlot
from vfiotool.pci.capability_reader import Reader, bits, flag, if_complete

_TYPE_NAMES: dict[int, str] = {
    PortType.ENDPOINT: "endpoint",
    PortType.LEGACY_ENDPOINT: "legacy endpoint",
    PortType.ROOT_PORT: "root port",
    PortType.UPSTREAM: "upstream port",
    PortType.DOWNSTREAM: "downstream port",
    PortType.PCIE_TO_PCI: "PCIe to PCI bridge",
    PortType.PCI_TO_PCIE: "PCI to PCIe bridge",
    PortType.INTEGRATED_ENDPOINT: "root complex integrated endpoint",
    PortType.EVENT_COLLECTOR: "root complex event collector",
}
_WITH_ROOT = (PortType.ROOT_PORT, PortType.EVENT_COLLECTOR)


@dataclass(frozen=True, slots=True)
class Express:
    """PCI Express: ``type`` is a ``PortType`` or an undefined number, and ``type_name`` its name.

    ``slot_implemented`` is ``None`` if this type of function cannot have a slot. ``interrupt_message`` is the
    number of the MSI or MSI-X vector of the capability's events. Each of the other parts is ``None`` if this
    type of function lacks it, or if it is truncated.
    """

    version: int
    type: int
    type_name: str
    device: ExpressDevice | None
    link: ExpressLink | None
    slot: ExpressSlot | None
    device2: ExpressDevice2 | None
    slot_implemented: bool | None
    interrupt_message: int
    flit_mode_supported: bool
    root: ExpressRoot | None
    link2: ExpressLink2 | None

    @classmethod
    def read(cls, at: Reader) -> Express:
        flags, kind = at.u16(2), read_port_type(at)
        version = bits(flags, 0, 4)
        slot_implemented = flag(flags, 8) if kind in FACING_DOWN else None
        has_link, is_second = kind not in WITHOUT_LINK, version > 1
        return cls(
            version=version,
            type=kind,
            type_name=_TYPE_NAMES.get(kind, f"type {kind}"),
            device=if_complete(ExpressDevice.read, at),
            link=if_complete(ExpressLink.read, at) if has_link else None,
            slot=if_complete(ExpressSlot.read, at) if slot_implemented else None,
            device2=if_complete(ExpressDevice2.read, at) if is_second else None,
            slot_implemented=slot_implemented,
            interrupt_message=bits(flags, 9, 5),
            flit_mode_supported=flag(flags, 15),
            root=if_complete(ExpressRoot.read, at) if kind in _WITH_ROOT else None,
            link2=if_complete(ExpressLink2.read, at) if has_link and is_second else None,
        )
