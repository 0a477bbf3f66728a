"""The public API of vfiotool; the module of a name is imported when the name is first used.

To import all of it takes several times as long as to start Python, and the command line must start
fast.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in typing, whose import costs a quarter of Python's own start
if TYPE_CHECKING:
    from vfiotool.binding.operations import Binding as Binding
    from vfiotool.binding.operations import bound as bound
    from vfiotool.drivers.base import Driver as Driver
    from vfiotool.drivers.igb.errors import IgbError as IgbError
    from vfiotool.drivers.igb.errors import IgbTimeoutError as IgbTimeoutError
    from vfiotool.drivers.nvme.errors import NvmeError as NvmeError
    from vfiotool.drivers.nvme.errors import NvmeStatusError as NvmeStatusError
    from vfiotool.drivers.nvme.errors import NvmeTimeoutError as NvmeTimeoutError
    from vfiotool.drivers.register_layout import bit as bit
    from vfiotool.drivers.register_layout import bits as bits
    from vfiotool.drivers.registers import Nested as Nested
    from vfiotool.drivers.registers import Register as Register
    from vfiotool.drivers.registers import RegisterBlock as RegisterBlock
    from vfiotool.errors import AccessError as AccessError
    from vfiotool.errors import BindError as BindError
    from vfiotool.errors import BlockedError as BlockedError
    from vfiotool.errors import ClosedError as ClosedError
    from vfiotool.errors import DeviceNotFoundError as DeviceNotFoundError
    from vfiotool.errors import DmaMapError as DmaMapError
    from vfiotool.errors import DmaRangeError as DmaRangeError
    from vfiotool.errors import GroupNotViableError as GroupNotViableError
    from vfiotool.errors import GuestLostError as GuestLostError
    from vfiotool.errors import IovaExhaustedError as IovaExhaustedError
    from vfiotool.errors import IrqError as IrqError
    from vfiotool.errors import IrqTimeoutError as IrqTimeoutError
    from vfiotool.errors import KernelError as KernelError
    from vfiotool.errors import LabError as LabError
    from vfiotool.errors import RefusedError as RefusedError
    from vfiotool.errors import RegisterError as RegisterError
    from vfiotool.errors import RegisterTimeoutError as RegisterTimeoutError
    from vfiotool.errors import SelectorError as SelectorError
    from vfiotool.errors import UnsupportedError as UnsupportedError
    from vfiotool.errors import UsageError as UsageError
    from vfiotool.errors import VfioToolError as VfioToolError
    from vfiotool.host.refusals import PlanRefusedError as PlanRefusedError
    from vfiotool.host.snapshot import snapshot as snapshot
    from vfiotool.vfio.device import Device as Device
    from vfiotool.vfio.device import open_device as open_device
    from vfiotool.vfio.dma.mapping import Buffer as Buffer
    from vfiotool.vfio.iommu.protocol import IommuMode as IommuMode
    from vfiotool.vfio.iommu.selection import offered_modes as offered_modes

__all__ = [
    "AccessError",
    "BindError",
    "Binding",
    "BlockedError",
    "Buffer",
    "ClosedError",
    "Device",
    "DeviceNotFoundError",
    "DmaMapError",
    "DmaRangeError",
    "Driver",
    "GroupNotViableError",
    "GuestLostError",
    "IgbError",
    "IgbTimeoutError",
    "IommuMode",
    "IovaExhaustedError",
    "IrqError",
    "IrqTimeoutError",
    "KernelError",
    "LabError",
    "Nested",
    "NvmeError",
    "NvmeStatusError",
    "NvmeTimeoutError",
    "PlanRefusedError",
    "RefusedError",
    "Register",
    "RegisterBlock",
    "RegisterError",
    "RegisterTimeoutError",
    "SelectorError",
    "UnsupportedError",
    "UsageError",
    "VfioToolError",
    "bit",
    "bits",
    "bound",
    "offered_modes",
    "open_device",
    "snapshot",
]

_HOMES = {
    "AccessError": "vfiotool.errors",
    "BindError": "vfiotool.errors",
    "Binding": "vfiotool.binding.operations",
    "BlockedError": "vfiotool.errors",
    "Buffer": "vfiotool.vfio.dma.mapping",
    "ClosedError": "vfiotool.errors",
    "Device": "vfiotool.vfio.device",
    "DeviceNotFoundError": "vfiotool.errors",
    "DmaMapError": "vfiotool.errors",
    "DmaRangeError": "vfiotool.errors",
    "Driver": "vfiotool.drivers.base",
    "GroupNotViableError": "vfiotool.errors",
    "GuestLostError": "vfiotool.errors",
    "IgbError": "vfiotool.drivers.igb.errors",
    "IgbTimeoutError": "vfiotool.drivers.igb.errors",
    "IommuMode": "vfiotool.vfio.iommu.protocol",
    "IovaExhaustedError": "vfiotool.errors",
    "IrqError": "vfiotool.errors",
    "IrqTimeoutError": "vfiotool.errors",
    "KernelError": "vfiotool.errors",
    "LabError": "vfiotool.errors",
    "Nested": "vfiotool.drivers.registers",
    "NvmeError": "vfiotool.drivers.nvme.errors",
    "NvmeStatusError": "vfiotool.drivers.nvme.errors",
    "NvmeTimeoutError": "vfiotool.drivers.nvme.errors",
    "PlanRefusedError": "vfiotool.host.refusals",
    "RefusedError": "vfiotool.errors",
    "Register": "vfiotool.drivers.registers",
    "RegisterBlock": "vfiotool.drivers.registers",
    "RegisterError": "vfiotool.errors",
    "RegisterTimeoutError": "vfiotool.errors",
    "SelectorError": "vfiotool.errors",
    "UnsupportedError": "vfiotool.errors",
    "UsageError": "vfiotool.errors",
    "VfioToolError": "vfiotool.errors",
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
    return list(__all__)
