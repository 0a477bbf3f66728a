"""The base of all drivers here, and the guarantees that each of its calls gives."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

from vfiotool.errors import ClosedError, UsageError
from vfiotool.vfio.device import Device

D = TypeVar("D", bound="Driver")


class Driver(ABC):
    """A driver of one open device, from ``start()`` to ``stop()``; a context manager of the two.

    ``__init__``
        touches nothing: no register, no interrupt, no memory.
    ``start()``
        resets the device, whatever state it is in, and makes it ready. The device reaches only memory that
        the driver has mapped, through ``device.dma``: every mode of the IOMMU works. Bus mastering is on if
        the device does DMA at all. A start that fails undoes its changes, like ``stop()``.
    Calls of the driver
        return when the device has reported that the operation is complete: data to receive is in memory,
        data to send has left it. A call ends in bounded time. After a TimeoutError the device may still
        be working: memory that it was given belongs to the device until ``stop()``.
    ``stop()``
        ends all DMA: operations in flight are complete or aborted, and the device starts no others. It
        raises no interrupt, bus mastering is off, and the driver's memory is unmapped. Any thread may call
        it, any number of times; running calls of other threads end with ClosedError. The driver can be
        started again.

    When the kernel requests the device, the driver stops before the device is released. One thread at a time
    may use a driver, unless its class says otherwise.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._changing = threading.Lock()
        self._resources: ExitStack | None = None

    @abstractmethod
    def _start(self, resources: ExitStack) -> None:
        """Make the device ready. Objects on the stack are closed once the device is quiet."""

    @abstractmethod
    def _quiesce(self) -> None:
        """Make the device end its DMA and its interrupts, whatever state it is in, and wait for that."""

    @property
    def started(self) -> bool:
        """Return True if the driver runs the device now."""
        return self._resources is not None

    def start(self) -> None:
        """Reset the device and make it ready.

        Raises:
            UsageError: the driver is started already.
            ClosedError: the device was closed or released.
        """
        with self._changing:
            if self.started:
                raise UsageError(f"the driver of {self.device.name} is started already", hint="stop it first")
            self._resources = resources = ExitStack()
            self.device.on_request = self._give_back
            try:
                self._start(resources)
            except BaseException:
                self._end(resources)
                raise

    def stop(self) -> None:
        """End all DMA and leave the device quiet; does nothing if the driver is stopped."""
        with self._changing:
            if self._resources is not None:
                self._end(self._resources)

    def _end(self, resources: ExitStack) -> None:
        """Quiesce the device first, then free its resources. A device that was released is quiet already."""
        self._resources = None
        with resources:
            self.device.on_request = None
            with contextlib.suppress(ClosedError):
                try:
                    self._quiesce()
                finally:
                    self.device.bus_master = False

    def _give_back(self, _device: Device) -> None:
        self.stop()

    def __enter__(self: D) -> D:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
