"""The driver of an 82576. Section numbers refer to Intel's 82576EB datasheet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from vfiotool.drivers.base import Driver
from vfiotool.drivers.igb.errors import IgbError, IgbTimeoutError
from vfiotool.drivers.igb.frames import (
    DEPTH,
    DESCRIPTOR_SIZE,
    ENTRIES,
    PAGE,
    RECEIVE,
    SIZE,
    TRANSMIT,
    Frames,
    pieces,
    require_range,
)
from vfiotool.drivers.igb.registers import IgbRegisters
from vfiotool.errors import ClosedError, IrqTimeoutError, RegisterTimeoutError, UnsupportedError, UsageError
from vfiotool.vfio.device import Device
from vfiotool.vfio.irqs.irqs import Vectors
from vfiotool.vfio.mmio.mmio import Mmio

_IDS = 0x8086, 0x10C9
_ALL = 0xFFFF_FFFF
_TIMEOUT = 10.0
_SOON = 5.0  # most events take microseconds, the link half a second
_LONGEST_PAUSE = 1e-3

_PHY, _PHY_WRITE = 1, 0b01
_PHY_CONTROL = 0  # a PHY register (IEEE 802.3, 22.2.4.1), and its bits:
_GIGABIT, _FULL_DUPLEX, _RESTART, _NEGOTIATE, _LOOPBACK = 1 << 6, 1 << 8, 1 << 9, 1 << 12, 1 << 14
_SPEED_1000 = 0b10
_ONE_BUFFER = 0b001
_VALID = 1 << 7


class Igb(Driver):
    """A driver of an 82576 for uses without a network: to copy memory and raise interrupts.

        with Igb(device, vectors=1) as igb:
            igb.copy(source.iova, destination.iova, source.size)

    See ``Driver`` for the guarantees of its calls. It enables ``vectors`` vectors of MSI-X. Copies raise
    the first vector and wait for it; without vectors they poll.

    A copy consists of frames of up to a page, which the device sends and receives itself. If a frame is lost,
    the call ends with IgbTimeoutError. The contents of the call's destinations are unknown then, and the
    driver copies nothing more until it is stopped and started.

    The device does not report memory that the IOMMU refuses. Refused writes are lost. In place of refused
    reads QEMU's device sends other bytes, and a real device may lose the frame.

    It was tested only with QEMU's igb, from version 8 on.
    """

    def __init__(self, device: Device, *, vectors: int = 0) -> None:
        super().__init__(device)
        self._wanted = vectors
        self._state: _State | None = None

    @property
    def registers(self) -> IgbRegisters:
        """The device's registers.

        Raises:
            ClosedError: the driver is not started.
        """
        return self._running.registers

    def copy(self, source: int, destination: int, size: int, *, timeout: float = _TIMEOUT) -> None:
        """Copy bytes from an IOVA to another, like ``copy_many()``."""
        self.copy_many([(source, destination, size)], timeout=timeout)

    def copy_many(self, copies: Iterable[tuple[int, int, int]], *, timeout: float = _TIMEOUT) -> None:
        """Make many copies of (source IOVA, destination IOVA, size in bytes).

        As many frames as fit in the rings are in flight at a time. ``timeout`` is the longest time, in
        seconds, in which no frame returns.

        Raises:
            DmaRangeError: a copy exceeds 64 bits; none was made.
            IgbTimeoutError: a frame did not return.
            IgbError: a received frame differs from the sent frame, or an earlier call lost a frame.
            ClosedError: the driver is not started, or was stopped meanwhile.
        """
        wanted = list(copies)
        for one in wanted:
            require_range(*one)
        running = self._running
        if running.frames.under_way:
            raise IgbError(
                f"a frame of {self.device.name} was lost", hint="stop its driver, and start it again"
            )
        running.forget_interrupts()
        parts = (part for one in wanted for part in pieces(*one))
        while running.send(parts):
            running.await_frame(timeout)

    def interrupt(self, vectors: Iterable[int] = (0,), *, timeout: float = _TIMEOUT) -> list[int]:
        """Have the device raise vectors, all at once; return the count of each, in ascending order.

        Each count starts at the last call that returned it.

        Raises:
            UsageError: the driver has not enabled one of the vectors.
            IrqTimeoutError: a vector was not signalled.
            ClosedError: the driver is not started, or was stopped meanwhile.
        """
        running, raised = self._running, sorted(set(vectors))
        enabled = running.vectors or ()
        if not all(0 <= number < len(enabled) for number in raised):
            raise UsageError(
                f"the driver of {self.device.name} has {len(enabled)} vectors", hint="make it with more"
            )
        running.registers.eics.write(sum(1 << number for number in raised))
        return [enabled[number].wait(timeout) for number in raised]

    def _start(self, resources: ExitStack) -> None:
        config = self.device.config
        if (config.vendor_id, config.device_id) != _IDS:
            raise UnsupportedError(f"{self.device.name} is not an 82576", hint="use another driver")
        window = resources.enter_context(self.device.regions.bar0.map())
        registers = IgbRegisters(window, name=f"{self.device.name}: igb")
        self._reset(registers)
        memory = resources.enter_context(self.device.dma.alloc(SIZE))
        frames = Frames(memory, self.device.name)
        vectors = None
        if self._wanted:
            vectors = resources.enter_context(self.device.irqs.msix.enable(self._wanted))
        self._state = _State(self.device.name, window, registers, frames, vectors)
        self.device.bus_master = True
        _loop_back(registers)
        _set_up_rings(registers, memory.iova)
        if vectors is not None:
            _set_up_interrupts(registers, len(vectors))

    def _quiesce(self) -> None:
        state, self._state = self._state, None
        if state is None:
            return
        state.window.revoke("its driver was stopped")  # ends the calls of other threads first
        with self.device.regions.bar0.map() as window:
            self._reset(IgbRegisters(window))

    def _reset(self, registers: IgbRegisters) -> None:
        """Make the device end its DMA, and reset it (5.2.3.3, 4.2.1.6.1)."""
        _mask_interrupts(registers)
        registers.ctrl.update(master_disable=1)
        try:
            registers.status.wait_until(master_enabled=0, timeout=_SOON)
        except RegisterTimeoutError:
            self.device.reset()
        registers.ctrl.update(reset=1)
        time.sleep(1e-3)  # the device must not be accessed before
        registers.ctrl.wait_until(reset=0, timeout=_SOON)
        _mask_interrupts(registers)

    @property
    def _running(self) -> _State:
        if self._state is None:
            raise ClosedError(f"the driver of {self.device.name} is not started", hint="call start() first")
        return self._state


@dataclass(frozen=True, slots=True)
class _State:
    """The state of a started driver."""

    name: str
    window: Mmio
    registers: IgbRegisters
    frames: Frames
    vectors: Vectors | None

    def forget_interrupts(self) -> None:
        """Consume the count of vector 0."""
        if self.vectors is not None:
            self.vectors[0].read()

    def send(self, parts: Iterator[tuple[int, int, int]]) -> int:
        """Send as many parts as there is room for, and return how many frames are in flight."""
        while self.frames.under_way < DEPTH:
            part = next(parts, None)
            if part is None:
                break
            self.frames.post(*part)
        self.registers.receive[0].tail.write(self.frames.tail)
        self.registers.transmit[0].tail.write(self.frames.tail)
        return self.frames.under_way

    def await_frame(self, timeout: float) -> None:
        """Wait for the first sent frame, and take all frames that have returned."""
        end, pause = time.monotonic() + timeout, 0.0
        while not self.frames.take():
            left = end - time.monotonic()
            if left <= 0:
                raise IgbTimeoutError(
                    f"a frame of {self.name} did not return within {timeout:g} s",
                    hint="is all of the memory mapped? The kernel's log shows what the IOMMU refused",
                )
            self._pause(left, pause)
            pause = min(2 * pause + 1e-6, _LONGEST_PAUSE)
        while self.frames.take():
            pass

    def _pause(self, longest: float, pause: float) -> None:
        if self.vectors is None:
            self.registers.status.read()  # raises ClosedError if the device was released
            time.sleep(pause)
            return
        with contextlib.suppress(IrqTimeoutError):  # the caller looks a last time
            self.vectors[0].wait(longest)


def _mask_interrupts(registers: IgbRegisters) -> None:
    registers.eimc.write(_ALL)
    registers.imc.write(_ALL)


def _loop_back(registers: IgbRegisters) -> None:
    """Enable the PHY's loopback at a forced speed (3.5.6.3.1)."""
    control = _GIGABIT | _FULL_DUPLEX
    # QEMU's igb has a link only after negotiation; on a real device the next write ends negotiation.
    _write_phy(registers, _PHY_CONTROL, control | _NEGOTIATE | _RESTART)
    _write_phy(registers, _PHY_CONTROL, control | _LOOPBACK)
    registers.ctrl.update(
        master_disable=0, full_duplex=1, link_up=1, speed=_SPEED_1000, force_speed=1, force_duplex=1
    )
    registers.status.wait_until(link_up=1, timeout=_SOON)


def _write_phy(registers: IgbRegisters, register: int, data: int) -> None:
    registers.mdic.write(data=data, register=register, phy=_PHY, operation=_PHY_WRITE)
    registers.mdic.wait_until(ready=1, timeout=_SOON)
    if registers.mdic.read_field("error"):
        raise IgbError(f"the PHY refuses {data:#x} in its register {register}")


def _set_up_rings(registers: IgbRegisters, iova: int) -> None:
    """Set both rings up in memory, empty (4.5.9, 4.5.10)."""
    receive, transmit = registers.receive[0], registers.transmit[0]
    for queue, at in ((receive, RECEIVE), (transmit, TRANSMIT)):
        queue.base_low.write(iova + at & _ALL)
        queue.base_high.write(iova + at >> 32)
        queue.length.write(ENTRIES * DESCRIPTOR_SIZE)
        queue.head.write(0)
        queue.tail.write(0)
    receive.buffers.write(size=PAGE >> 10, kind=_ONE_BUFFER)
    registers.rctl.write(enable=1, any_address=1, long_frames=1, strip_checksum=1)
    registers.tctl.update(enable=1)
    for queue in (receive, transmit):
        queue.control.update(enable=1)
        queue.control.wait_until(enable=1, timeout=_SOON)


def _set_up_interrupts(registers: IgbRegisters, count: int) -> None:
    """Raise vector 0 for received frames without delay; a raised vector clears its causes (7.3)."""
    every = (1 << count) - 1
    registers.gpie.write(multiple_msix=1)
    for number in range(count):
        registers.eitr[number].write(0)
    registers.ivar[0].write(receive=_VALID)
    registers.eiac.write(every)
    registers.eims.write(every)
