"""An open device: its regions, interrupts, configuration space and DMA in one place."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.device_info import read_device_info
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.features import Features
from vfiotool.vfio.info import DeviceInfo
from vfiotool.vfio.iommu import Iommu, IommuMode, open_iommu
from vfiotool.vfio.iommu.selection import AUTO
from vfiotool.vfio.irqs.device_request import DeviceRequestHandler
from vfiotool.vfio.irqs.irqs import Irqs
from vfiotool.vfio.regions.config_space import ConfigSpace
from vfiotool.vfio.regions.regions import Regions
from vfiotool.vfio.reset import hot_reset, reset_function


class Device:
    """A device that this process drives; ``name`` is its address. A context manager.

    Threads may share it. What was made from it (mapped regions, vectors, DMA memory) ends with it, and
    may be closed before or after it. When the kernel asks for the device, because something unbinds or
    removes it, ``on_request`` is called with it in a thread of its own; then it is given back, and all
    that uses it raises ClosedError.
    """

    _ended = False
    on_request: Callable[[Device], None] | None = None
    """What a driver has to do before its device goes: stop DMA, above all. It has seconds."""

    def __init__(self, file: DeviceFile, dma: Dma, *, honour_requests: bool = True) -> None:
        """Take over an open device and a share in its address space; ``open_device`` makes both.

        ``honour_requests=False`` leaves requests for the device to ``irqs.req``.
        """
        self.file = file
        self.name = file.name
        self.dma = dma
        self.regions = Regions(file)
        self.irqs = Irqs(file)
        self.features = Features(file)
        self._request = DeviceRequestHandler(file, self.irqs, self._ask_driver) if honour_requests else None
        dma.share()

    @property
    def config(self) -> ConfigSpace:
        """Its configuration space."""
        return self.regions.config

    @property
    def closed(self) -> bool:
        """Say whether it was closed or given back."""
        return self.file.closed

    def fileno(self) -> int:
        """Return its file descriptor.

        Raises:
            ClosedError: it was closed or given back.
        """
        return self.file.fileno()

    def info(self) -> DeviceInfo:
        """Return what kind of device it is, and how many regions and interrupts it can have.

        Raises:
            KernelError: EBADMSG for a malformed answer.
        """
        return read_device_info(self.file)

    @property
    def bus_master(self) -> bool:
        """Whether it may do DMA and raise MSI. It may not when it is opened: turning that on is explicit."""
        return self.config.bus_master

    @bus_master.setter
    def bus_master(self, enabled: bool) -> None:
        self.config.bus_master = enabled

    def reset(self) -> None:
        """Reset the function, and arm again the interrupts that were enabled.

        Its registers are as after power on; the kernel restores its configuration space, bus mastering
        included.

        Raises:
            UnsupportedError: it cannot be reset alone: see ``hot_reset``.
            KernelError: the reset failed.
        """
        reset_function(self.file)
        self.settle()

    def hot_reset(self) -> None:
        """Reset the bus or slot, and with it all devices on it, which must be this process's.

        For the others of them call ``settle`` afterwards.

        Raises:
            UnsupportedError: no bridge above it can reset its bus or slot.
            RefusedError: a device that it would reset is not this process's.
            KernelError: the reset failed.
        """
        hot_reset(self.file, self.dma.iommu.groups)
        self.settle()

    def settle(self) -> None:
        """After a reset that came from elsewhere: arm again the interrupts that were enabled.

        Raises:
            KernelError: the kernel has fewer interrupts to give now.
        """
        self.config.settle()
        self.irqs.rearm()

    def close(self) -> None:
        """Give the device back; calls after the first do nothing. The last one ends the address space."""
        if self._ended:
            return
        self._ended = True
        with ExitStack() as last_first:  # whatever one of them raises, the others are done
            last_first.callback(self.dma.release)
            if self._request is not None:
                last_first.callback(self._request.close)
            last_first.callback(self.file.close)
            last_first.callback(self.irqs.close)

    def _ask_driver(self) -> None:
        if self.on_request is not None:
            self.on_request(self)

    def __enter__(self) -> Device:
        self.fileno()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Device {self.name}, {'closed' if self.closed else 'open'}>"


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
