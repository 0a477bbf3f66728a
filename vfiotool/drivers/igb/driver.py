"""The driver of an 82576. Sections are of Intel's datasheet of the 82576EB."""

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
_SOON = 5.0  # what comes within microseconds, and the link within half a second
_LONGEST_PAUSE = 1e-3

_PHY, _PHY_WRITE = 1, 0b01
_PHY_CONTROL = 0  # a PHY's register (IEEE 802.3, 22.2.4.1), and what is in it:
_GIGABIT, _FULL_DUPLEX, _RESTART, _NEGOTIATE, _LOOPBACK = 1 << 6, 1 << 8, 1 << 9, 1 << 12, 1 << 14
_SPEED_1000 = 0b10
_ONE_BUFFER = 0b001
_VALID = 1 << 7


class Igb(Driver):
    """A driver of an 82576, for what it can do without a network: copy memory, and raise interrupts.

        with Igb(device, vectors=1) as igb:
            igb.copy(source.iova, destination.iova, source.size)

    See ``Driver`` for what holds when its calls have returned. It enables as many vectors of MSI-X as
    ``vectors`` says. Copies raise the first one, and are awaited by it; without any, by looking.

    A copy travels in frames, each up to a page, which the device sends and receives itself. Where one is
    lost the call ends with IgbTimeoutError: then nobody knows what is in the destinations of that call, and
    the driver copies nothing more until it is stopped and started.

    The device does not tell when the IOMMU refuses it memory: what it may not write is written nowhere; in
    place of what it may not read QEMU's sends other bytes, and a real one may lose the frame.

    It was tried on QEMU's igb, from version 8 on, and on no other.
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
        """Copy bytes from an IOVA to another, as ``copy_many()`` does."""
        self.copy_many([(source, destination, size)], timeout=timeout)

    def copy_many(self, copies: Iterable[tuple[int, int, int]], *, timeout: float = _TIMEOUT) -> None:
        """Make many copies: of each the IOVA of source and destination, and the size in bytes.

        As many frames as the rings have room for are under way at a time. ``timeout`` is for how many
        seconds none may come back.

        Raises:
            DmaRangeError: a copy leaves the 64 bits; none was made.
            IgbTimeoutError: a frame did not come back.
            IgbError: what came back is not what was sent, or an earlier call lost a frame.
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
        """Have the device raise vectors, all at once; return how often each has come, in ascending order.

        Each counts from when it was last asked for.

        Raises:
            UsageError: the driver has enabled no such vector.
            IrqTimeoutError: one did not come.
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
            raise UnsupportedError(f"{self.device.name} is not an 82576", hint="this driver knows no other")
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
        state.window.revoke("its driver was stopped")  # what other threads are at ends before all else
        with self.device.regions.bar0.map() as window:
            self._reset(IgbRegisters(window))

    def _reset(self, registers: IgbRegisters) -> None:
        """Have the device end its DMA, and then forget all (5.2.3.3, 4.2.1.6.1)."""
        _mask_interrupts(registers)
        registers.ctrl.update(master_disable=1)
        try:
            registers.status.wait_until(master_enabled=0, timeout=_SOON)
        except RegisterTimeoutError:
            self.device.reset()
        registers.ctrl.update(reset=1)
        time.sleep(1e-3)  # before that it must be left alone
        registers.ctrl.wait_until(reset=0, timeout=_SOON)
        _mask_interrupts(registers)

    @property
    def _running(self) -> _State:
        if self._state is None:
            raise ClosedError(f"the driver of {self.device.name} is not started", hint="start it")
        return self._state


@dataclass(frozen=True, slots=True)
class _State:
    """What a started driver has."""

    name: str
    window: Mmio
    registers: IgbRegisters
    frames: Frames
    vectors: Vectors | None

    def forget_interrupts(self) -> None:
        """Take what vector 0 has counted."""
        if self.vectors is not None:
            self.vectors[0].read()

    def send(self, parts: Iterator[tuple[int, int, int]]) -> int:
        """Send as many parts as there is room for, and return how many frames are under way."""
        while self.frames.under_way < DEPTH:
            part = next(parts, None)
            if part is None:
                break
            self.frames.post(*part)
        self.registers.receive[0].tail.write(self.frames.tail)
        self.registers.transmit[0].tail.write(self.frames.tail)
        return self.frames.under_way

    def await_frame(self, timeout: float) -> None:
        """Wait for the frame that was sent first, and take all that have come back."""
        end, pause = time.monotonic() + timeout, 0.0
        while not self.frames.take():
            left = end - time.monotonic()
            if left <= 0:
                raise IgbTimeoutError(
                    f"a frame of {self.name} did not come back within {timeout:g} s",
                    hint="is all of the memory mapped? The kernel's log tells what the IOMMU refused",
                )
            self._pause(left, pause)
            pause = min(2 * pause + 1e-6, _LONGEST_PAUSE)
        while self.frames.take():
            pass

    def _pause(self, longest: float, pause: float) -> None:
        if self.vectors is None:
            self.registers.status.read()  # by which one hears that the device was taken away
            time.sleep(pause)
            return
        with contextlib.suppress(IrqTimeoutError):  # it is looked at a last time
            self.vectors[0].wait(longest)


def _mask_interrupts(registers: IgbRegisters) -> None:
    registers.eimc.write(_ALL)
    registers.imc.write(_ALL)


def _loop_back(registers: IgbRegisters) -> None:
    """Have the PHY hand back what it is given to send, at a speed that is forced (3.5.6.3.1)."""
    control = _GIGABIT | _FULL_DUPLEX
    # QEMU's igb has a link when negotiation ends, and only then; on a real one the next write ends it.
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
        raise IgbError(f"the PHY does not take {data:#x} in its register {register}")


def _set_up_rings(registers: IgbRegisters, iova: int) -> None:
    """Have both rings in memory, and empty (4.5.9, 4.5.10)."""
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
    """Raise vector 0 for what is received, without delay; what a vector was raised for is cleared (7.3)."""
    every = (1 << count) - 1
    registers.gpie.write(multiple_msix=1)
    for number in range(count):
        registers.eitr[number].write(0)
    registers.ivar[0].write(receive=_VALID)
    registers.eiac.write(every)
    registers.eims.write(every)
