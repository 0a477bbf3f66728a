"""A device that VFIO gave to this process."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import uuid
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from vfiotool.errors import KernelError
from vfiotool.vfio.answer import Answer, ask
from vfiotool.vfio.handle import Handle
from vfiotool.vfio.info import DeviceInfo, IrqInfo, RegionInfo, device_info, irq_info, region_info
from vfiotool.vfio.uapi import (
    DeviceFeature,
    DeviceFeatureFlags,
    DeviceIoctl,
    vfio_device_feature,
    vfio_device_info,
    vfio_irq_info,
    vfio_region_info,
)

T = TypeVar("T")


class Device(Handle):
    """An open device; ``name`` is its address. Threads may share it, but see ``Handle``.

    While it is open the kernel keeps its group and its container, closed or not.
    """

    def info(self) -> DeviceInfo:
        """Return what kind of device it is, and how many regions and interrupts it can have.

        Raises:
            KernelError: EBADMSG for a malformed answer.
        """
        return device_info(self._ask(DeviceIoctl.VFIO_DEVICE_GET_INFO, vfio_device_info()))

    def region(self, index: int) -> RegionInfo:
        """Return where a region is and what may be done with it; the index may be a ``PciRegion``.

        Raises:
            KernelError: EINVAL, there is no such region; EBADMSG for a malformed answer.
        """
        request = DeviceIoctl.VFIO_DEVICE_GET_REGION_INFO
        return region_info(self._ask_of(request, vfio_region_info(), index))

    def irq(self, index: int) -> IrqInfo:
        """Return how many interrupts an index has; it may be a ``PciIrq``.

        Raises:
            KernelError: EINVAL, there is no such index.
        """
        request = DeviceIoctl.VFIO_DEVICE_GET_IRQ_INFO
        return irq_info(self._ask_of(request, vfio_irq_info(), index))

    def regions(self) -> tuple[RegionInfo, ...]:
        """Return the regions that the device has; indexes that it lacks, as VGA, are left out."""
        return _all(self.region, self.info().num_regions)

    def irqs(self) -> tuple[IrqInfo, ...]:
        """Return the interrupt indexes that the device has."""
        return _all(self.irq, self.info().num_irqs)

    def set_vf_token(self, token: uuid.UUID) -> None:
        """Set the secret that whoever opens a VF of this PF must show; every call replaces it.

        The kernel makes up one that no one knows when the PF comes to its driver, so its VFs open
        only after this. Who opens the PF while a VF is open must show it too.

        Raises:
            KernelError: ENOTTY, the device is not a PF.
        """
        request = DeviceIoctl.VFIO_DEVICE_FEATURE
        size = ctypes.sizeof(vfio_device_feature) + len(token.bytes)
        feature = vfio_device_feature(size, DeviceFeatureFlags.SET | DeviceFeature.PCI_VF_TOKEN)
        try:
            fcntl.ioctl(self.fileno(), int(request), bytes(feature) + token.bytes)
        except OSError as error:
            hint = "only a PF on vfio-pci has a token for its VFs" if error.errno == errno.ENOTTY else ""
            raise KernelError(error.errno or errno.EIO, request.name, self.name, hint=hint) from None

    def _ask_of(self, request: DeviceIoctl, question: vfio_region_info | vfio_irq_info, index: int) -> Answer:
        if not 0 <= index < 1 << 32:  # ctypes would cut it to another index
            raise KernelError(errno.EINVAL, request.name, self.name)
        question.index = index
        return self._ask(request, question)

    def _ask(self, request: DeviceIoctl, question: ctypes.Structure) -> Answer:
        call = partial(fcntl.ioctl, self.fileno(), int(request))
        return ask(call, question, request.name, self.name)


def _all(read: Callable[[int], T], count: int) -> tuple[T, ...]:
    found = []
    for index in range(count):
        try:
            found.append(read(index))
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
    return tuple(found)
