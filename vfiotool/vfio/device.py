"""An open device: its regions, interrupts, configuration space and DMA."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from vfiotool.host.tree import Tree
from vfiotool.vfio.bus_ranges import bus_ranges
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.device_info import read_device_info
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.features import Features
from vfiotool.vfio.info import DeviceInfo
from vfiotool.vfio.iommu import Iommu, open_iommu
from vfiotool.vfio.iommu.selection import AUTO, best_with_token
from vfiotool.vfio.irqs.device_request import DeviceRequestHandler
from vfiotool.vfio.irqs.irqs import Irqs
from vfiotool.vfio.regions.config_space import ConfigSpace
from vfiotool.vfio.regions.regions import Regions
from vfiotool.vfio.reset import hot_reset, reset_function


class Device:
    """A device that this process drives; ``name`` is its address. A context manager.

    Threads may share it. Objects made from it (mapped regions, vectors, DMA memory) end with it, and may be
    closed before or after it. When something unbinds or removes the device, the kernel requests it: a
    separate thread then calls ``on_request`` with the device. After that the device is released, and every
    use of it raises ClosedError.
    """

    _ended = False
    on_request: Callable[[Device], None] | None = None
    """Called before the device is released: the driver must stop DMA. The kernel waits for seconds."""

    def __init__(self, file: DeviceFile, dma: Dma, *, honour_requests: bool = True) -> None:
        """Own an open device and a reference to its address space; ``open_device`` makes both.

        ``honour_requests=False`` leaves the kernel's requests for the device to ``irqs.req``.
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
        """The configuration space of the device."""
        return self.regions.config

    @property
    def closed(self) -> bool:
        """Return True if the device was closed or released."""
        return self.file.closed

    def fileno(self) -> int:
        """Return the file descriptor of the device.

        Raises:
            ClosedError: the device was closed or released.
        """
        return self.file.fileno()

    def info(self) -> DeviceInfo:
        """Return the type of the device and the numbers of its regions and interrupt indexes.

        Raises:
            KernelError: EBADMSG for a malformed reply.
        """
        return read_device_info(self.file)

    @property
    def bus_master(self) -> bool:
        """True if the device may do DMA and raise MSI. A device is opened with it off; a driver sets it."""
        return self.config.bus_master

    @bus_master.setter
    def bus_master(self, enabled: bool) -> None:
        self.config.bus_master = enabled

    def reset(self) -> None:
        """Reset the function, and enable again the interrupts that were enabled.

        The device's registers have their power-on values afterwards. The kernel restores configuration space,
        bus mastering included.

        Raises:
            UnsupportedError: the device cannot be reset alone: see ``hot_reset``.
            KernelError: the reset failed.
        """
        reset_function(self.file)
        self.settle()

    def hot_reset(self) -> None:
        """Reset the bus or slot, and with it all its devices, which this process must own.

        Call ``settle`` for each of the other devices afterwards.

        Raises:
            UnsupportedError: no bridge above the device can reset its bus or slot.
            RefusedError: this process does not own a device that would be reset.
            KernelError: the reset failed.
        """
        hot_reset(self.file, self.dma.iommu.groups)
        self.settle()

    def settle(self) -> None:
        """Enable again the interrupts that were enabled, after a reset that another device caused.

        Raises:
            KernelError: the kernel has fewer interrupts available now.
        """
        self.config.settle()
        self.irqs.rearm()

    def close(self) -> None:
        """Release the device; calls after the first do nothing.

        The address space ends with its last device.
        """
        if self._ended:
            return
        self._ended = True
        with ExitStack() as last_first:  # an error in one callback does not skip the others
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
    """Open the device at an address (``0000:03:00.0``), which must be bound to a VFIO driver.

    ``iommu`` is "auto", the value of an ``IommuMode``, or the ``dma`` of another open device: then both
    devices share its address space. ``vf_token`` is for a VF whose PF is on vfio-pci as well; "auto" then
    selects type1v2 if the kernel has it: cdevs take tokens only since Linux 6.18.
    ``honour_requests=False`` keeps the device when the kernel requests it: see ``Device``.

    Raises:
        DeviceNotFoundError: there is no such device.
        UnsupportedError: the kernel does not have the mode, or no IOMMU isolates the device.
        GroupNotViableError: a device of its group is bound to a host driver.
        UsageError: there is no such mode.
        KernelError: the device is not bound to a VFIO driver, is in use, or this user may not open it.
    """
    dma = iommu if isinstance(iommu, Dma) else Dma(_opened(iommu, address, vf_token))
    dma.share()  # a failure below then ends the address space, unless another device uses it
    try:
        file = dma.iommu.open_device(address, vf_token)
        try:
            dma.refresh(bus_ranges(Tree(), address))
            return Device(file, dma, honour_requests=honour_requests)
        except BaseException:
            file.close()
            raise
    finally:
        dma.release()


def _opened(mode: str, address: str, vf_token: uuid.UUID | None) -> Iommu:
    if mode == AUTO and vf_token is not None:
        mode = best_with_token(address)
    return open_iommu(mode, address=address)
