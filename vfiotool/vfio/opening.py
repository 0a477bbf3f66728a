"""Open a device with all that it needs to do DMA."""

from __future__ import annotations

import uuid

from vfiotool.vfio.device import Device
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.iommu import Iommu, IommuMode, open_iommu
from vfiotool.vfio.iommu.choosing import AUTO


def open_device(
    address: str,
    *,
    iommu: str | Dma = AUTO,
    vf_token: uuid.UUID | None = None,
    honour_requests: bool = True,
) -> Device:
    """Open the device at an address (``0000:03:00.0``), which is on a VFIO driver.

    ``iommu`` is "auto", the value of an ``IommuMode``, or the ``dma`` of another open device, whose
    address space it then shares. ``vf_token`` is for a VF whose PF is on vfio-pci too; there "auto" is
    type1. ``honour_requests=False`` keeps the device when the kernel asks for it: see ``Device``.

    Raises:
        DeviceNotFoundError: there is no such device.
        UnsupportedError: the kernel has no such mode, or no IOMMU guards the device.
        GroupNotViableError: a device of its group is on a host driver.
        UsageError: there is no such mode.
        KernelError: the device is not on a VFIO driver, is in use, or is not this user's.
    """
    dma = iommu if isinstance(iommu, Dma) else Dma(_opened(iommu, address, vf_token))
    dma.share()  # so that what fails here ends the address space, unless another device is in it
    try:
        file = dma.iommu.open_device(address, vf_token)
        try:
            dma.refresh()
            return Device(file, dma, honour_requests=honour_requests)
        except BaseException:
            file.close()
            raise
    finally:
        dma.release()


def _opened(mode: str, address: str, vf_token: uuid.UUID | None) -> Iommu:
    if mode == AUTO and vf_token is not None:
        mode = IommuMode.TYPE1V2
    return open_iommu(mode, address=address)
