"""The public API, re-exported; a name's module is imported when the name is first used.

Importing all of it costs several times what Python's own start does, and the command line must
start fast.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in typing, whose import costs a quarter of Python's own start
if TYPE_CHECKING:
    from vfiotool.binding.operations import Binding as Binding
    from vfiotool.binding.operations import bound as bound
    from vfiotool.drivers.register_layout import bit as bit
    from vfiotool.drivers.register_layout import bits as bits
    from vfiotool.drivers.registers import Register as Register
    from vfiotool.drivers.registers import RegisterBlock as RegisterBlock
    from vfiotool.host.snapshot import snapshot as snapshot
    from vfiotool.vfio.device import Device as Device
    from vfiotool.vfio.device import open_device as open_device
    from vfiotool.vfio.dma.mapping import Buffer as Buffer
    from vfiotool.vfio.iommu.protocol import IommuMode as IommuMode
    from vfiotool.vfio.iommu.selection import offered_modes as offered_modes

_HOMES = {
    "Binding": "vfiotool.binding.operations",
    "Buffer": "vfiotool.vfio.dma.mapping",
    "Device": "vfiotool.vfio.device",
    "IommuMode": "vfiotool.vfio.iommu.protocol",
    "Register": "vfiotool.drivers.registers",
    "RegisterBlock": "vfiotool.drivers.registers",
    "bit": "vfiotool.drivers.register_layout",
    "bits": "vfiotool.drivers.register_layout",
    "bound": "vfiotool.binding.operations",
    "offered_modes": "vfiotool.vfio.iommu.selection",
    "open_device": "vfiotool.vfio.device",
    "snapshot": "vfiotool.host.snapshot",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
