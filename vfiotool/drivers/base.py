"""What every driver here promises: what is true of its device when a call of it has returned."""

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
        has touched nothing: no register, no interrupt, no memory.
    ``start()``
        has reset the device, whatever state it was in, and the device is ready. It reaches only memory
        that the driver has mapped, through ``device.dma``: any mode of the IOMMU will do. Bus mastering
        is on, if the device does DMA at all. A start that fails has undone what it did, as ``stop()``
        would.
    Any call of a driver's own
        has done what it says, by the device's own word: data that was to come is in memory, data that
        was to go has left it. A call ends in bounded time. Where it ends with a TimeoutError the device
        may still be at it: memory that it was given is the device's until ``stop()``.
    ``stop()``
        has ended all DMA: what was in flight is complete or aborted, and the device starts nothing any
        more. It raises no interrupt, bus mastering is off, and what the driver mapped is unmapped. Any
        thread may call it, any number of times; calls that other threads are in end with ClosedError.
        The driver can be started again.

    When the kernel asks for the device, the driver stops before the device is given back. Unless a
    driver says more, one thread at a time may use it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._changing = threading.Lock()
        self._resources: ExitStack | None = None

    @abstractmethod
    def _start(self, resources: ExitStack) -> None:
        """Make the device ready; what is put on the stack is closed once the device is quiet."""

    @abstractmethod
    def _quiesce(self) -> None:
        """Have the device end its DMA and its interrupts, whatever state it is in; return when it has."""

    @property
    def started(self) -> bool:
        """Say whether the device is this driver's now."""
        return self._resources is not None

    def start(self) -> None:
        """Reset the device and make it ready.

        Raises:
            UsageError: it was started already.
            ClosedError: the device was closed, or given back.
        """
        with self._changing:
            if self.started:
                raise UsageError(f"{self.device.name} was started already", hint="stop its driver first")
            self._resources = resources = ExitStack()
            self.device.on_request = self._give_back
            try:
                self._start(resources)
            except BaseException:
                self._end(resources)
                raise

    def stop(self) -> None:
        """End all DMA and leave the device quiet; does nothing where that has been done."""
        with self._changing:
            if self._resources is not None:
                self._end(self._resources)

    def _end(self, resources: ExitStack) -> None:
        """Stop the device first, then take away what it used. A device that is gone has stopped."""
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
