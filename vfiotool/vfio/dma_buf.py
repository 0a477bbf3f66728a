"""dma-bufs of BARs: what iommufd maps in place of an address (since 6.19)."""

from __future__ import annotations

import ctypes
import errno
import os

from vfiotool.errors import KernelError, UnsupportedError
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.uapi import (
    DeviceFeature,
    DeviceFeatureFlags,
    DeviceIoctl,
    vfio_device_feature,
    vfio_device_feature_dma_buf,
    vfio_region_dma_range,
)

_MISSING = (errno.ENOTTY, errno.EOPNOTSUPP)  # of the kernel, of the device's driver


def export_dma_buf(file: DeviceFile, index: int, offset: int, size: int) -> int:
    """Return the descriptor of a new dma-buf of whole pages of a BAR; the caller closes it.

    The kernel revokes the dma-buf while the device is reset or its memory is off, and at the device's close.

    Source: ``vfio_pci_core_feature_dma_buf`` in drivers/vfio/pci/vfio_pci_dmabuf.c.

    Raises:
        UnsupportedError: this kernel, or the driver of the device, exports no BARs.
        KernelError: EINVAL, not whole pages of the BAR; ENODEV, the region is no BAR.
        ClosedError: the device was closed or released.
    """
    export = vfio_device_feature_dma_buf(region_index=index, open_flags=os.O_RDWR | os.O_CLOEXEC, nr_ranges=1)
    data = bytes(export) + bytes(vfio_region_dma_range(offset=offset, length=size))
    question = vfio_device_feature(
        argsz=ctypes.sizeof(vfio_device_feature) + len(data),
        flags=DeviceFeatureFlags.GET | DeviceFeature.DMA_BUF,
    )
    try:
        return file.ioctl(DeviceIoctl.VFIO_DEVICE_FEATURE, bytearray(bytes(question) + data))
    except KernelError as error:
        if error.errno not in _MISSING:
            raise
        raise UnsupportedError(
            f"the BARs of {file.name} cannot be exported as dma-bufs",
            hint="it needs Linux 6.19 with CONFIG_VFIO_PCI_DMABUF, and a driver that supports it",
        ) from None
