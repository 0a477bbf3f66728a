"""Open a fake device as a driver opens a real one."""

from __future__ import annotations

from vfiotool.testing.fake_device import FakeDevice
from vfiotool.testing.fake_iommu import FakeIommu
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.iommu import IommuMode
from vfiotool.vfio.iommu.selection import AUTO


def open_fake(device: FakeDevice, *, iommu: str = AUTO, honour_requests: bool = True) -> Device:
    """Open a fake device as ``open_device`` opens a real one, in an address space that no other device is in.

    ``iommu`` is the mode of a ``FakeIommu``; "auto" is type1v2.
    """
    mode = IommuMode.TYPE1V2 if iommu == AUTO else iommu
    space = Dma(FakeIommu(mode, [device]))
    return open_device(device.address, iommu=space, honour_requests=honour_requests)
