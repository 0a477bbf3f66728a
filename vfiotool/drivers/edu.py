"""QEMU's educational device, edu (QEMU docs/specs/edu)."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfiotool.drivers.base import Driver
from vfiotool.drivers.register_layout import bit, bits
from vfiotool.drivers.registers import Register, RegisterBlock
from vfiotool.errors import ClosedError, DmaRangeError, KernelError, UnsupportedError, UsageError
from vfiotool.vfio.device import Device
from vfiotool.vfio.dma.mapping import Buffer
from vfiotool.vfio.irqs.irqs import Irq, Vector
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.uapi import PciIrq

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DMA_MASK = (1 << 28) - 1
"""The highest IOVA that the device reaches, unless QEMU's ``dma_mask`` sets another."""
CAPACITY = 4095
"""The usable bytes of its buffer: not the last, since a copy that touches it ends QEMU 7.2."""

_EDU = 0x00ED
_BUFFER = 0x40000  # the DMA address of the device's own buffer
_ALL = 0xFFFF_FFFF
_FACTORIAL_DONE, _DMA_DONE = 0x001, 0x100  # causes of an interrupt

_TIMEOUT = 10.0  # a copy takes 100 ms, and a factorial about 1 ns times the number
_LONGEST_FACTORIAL = 60.0


class EduRegisters(RegisterBlock, width=32):
    """BAR0: accesses of 32 bits, and of 64 bits from 0x80 on."""

    identification = Register(
        0x00, access="ro", fields={"major": bits(31, 24), "minor": bits(23, 16), "edu": bits(15, 0)}
    )
    inversion = Register(0x04)
    factorial = Register(0x08)
    status = Register(0x20, fields={"computing": bit(0, "ro"), "interrupt": bit(7)})
    irq_status = Register(0x24, access="ro")
    irq_raise = Register(0x60, access="wo")
    irq_acknowledge = Register(0x64, access="wo")
    dma_source = Register(0x80, width=64)
    dma_destination = Register(0x88, width=64)
    dma_count = Register(0x90, width=64)
    dma_command = Register(0x98, width=64, fields={"start": bit(0), "to_memory": bit(1), "interrupt": bit(2)})


class Edu(Driver):
    """A driver of edu; see ``Driver`` for the guarantees of its calls.

        with Edu(device, irq=device.irqs.msi) as edu:
            edu.copy_to_device(0, b"ping")
            assert edu.copy_from_device(0, 4) == b"ping"

    Operations that take time are awaited by ``irq``, the device's MSI or INTx, or else by polling.
    ``timeout`` is in seconds, and ends in a TimeoutError. The device has a buffer, of which ``CAPACITY``
    bytes can be used. It does not report a DMA that the IOMMU refuses: nothing is copied then.
    """

    def __init__(self, device: Device, *, irq: Irq | None = None) -> None:
        super().__init__(device)
        self.irq = irq
        self._state: _State | None = None

    @property
    def registers(self) -> EduRegisters:
        """The device's registers.

        Raises:
            ClosedError: the driver is not started.
        """
        return self._running.registers

    @property
    def version(self) -> tuple[int, int]:
        """The device's version, major and minor."""
        found = self.registers.identification.read_fields()
        return found["major"], found["minor"]

    def invert(self, number: int) -> int:
        """Have the device invert the bits of a 32-bit number, which shows that it is alive."""
        register = self.registers.inversion
        register.write(number)
        return register.read()

    def factorial(self, number: int, *, timeout: float = _TIMEOUT) -> int:
        """Return the factorial of a 32-bit number, modulo 2^32."""
        running = self._running
        registers = running.registers
        registers.status.wait_until(computing=0, timeout=timeout)
        running.forget_interrupts()
        registers.factorial.write(number)
        running.await_interrupt(_FACTORIAL_DONE, timeout)
        registers.status.wait_until(computing=0, timeout=timeout)
        return registers.factorial.read()

    def copy_to_device(self, offset: int, data: ReadableBuffer, *, timeout: float = _TIMEOUT) -> None:
        """Copy bytes to an offset of the device's buffer.

        Raises:
            DmaRangeError: the bytes do not fit there.
        """
        taken = bytes(data)
        buffer = self._running.buffer
        _require_in_buffer(offset, len(taken))
        buffer[: len(taken)] = taken
        self.fetch(buffer.iova, offset, len(taken), timeout=timeout)

    def copy_from_device(self, offset: int, size: int, *, timeout: float = _TIMEOUT) -> bytes:
        """Return bytes from an offset of the device's buffer on.

        Raises:
            DmaRangeError: the bytes exceed the buffer.
        """
        buffer = self._running.buffer
        self.store(buffer.iova, offset, size, timeout=timeout)
        return buffer[:size]

    def fetch(self, iova: int, offset: int, size: int, *, timeout: float = _TIMEOUT) -> None:
        """Have the device read mapped memory into an offset of its buffer.

        Raises:
            DmaRangeError: the bytes do not fit there, or the device does not reach the memory.
        """
        _require_reachable(iova, offset, size)
        self._copy(iova, _BUFFER + offset, size, timeout, to_memory=False)

    def store(self, iova: int, offset: int, size: int, *, timeout: float = _TIMEOUT) -> None:
        """Have the device write mapped memory, from an offset of its buffer on.

        Raises:
            DmaRangeError: the bytes exceed the buffer, or the device does not reach the memory.
        """
        _require_reachable(iova, offset, size)
        self._copy(_BUFFER + offset, iova, size, timeout, to_memory=True)

    def interrupt(self, causes: int = 1, *, timeout: float = _TIMEOUT) -> int:
        """Have the device raise its interrupt, with causes as a bit mask; return the number of interrupts.

        Raises:
            UsageError: there are no causes, or the driver has no interrupt.
        """
        running = self._running
        if running.vector is None or not causes:
            raise UsageError(f"{self.device.name} has no interrupt to raise", hint="pass an irq and a cause")
        running.registers.irq_raise.write(causes)
        count = running.vector.wait(timeout)
        running.acknowledge()
        return count

    def _start(self, resources: ExitStack) -> None:
        window = resources.enter_context(self.device.regions.bar0.map())
        registers = EduRegisters(window, name=f"{self.device.name}: edu")
        if registers.identification.read_field("edu") != _EDU:
            raise UnsupportedError(f"{self.device.name} is not edu", hint="'vfiotool show' names the device")
        _settle(registers)
        registers.status.wait_until(computing=0, timeout=_LONGEST_FACTORIAL)
        buffer = resources.enter_context(self.device.dma.alloc(CAPACITY, iova_max=DMA_MASK))
        vector = resources.enter_context(self.irq.enable(1))[0] if self.irq is not None else None
        registers.status.write(interrupt=vector is not None)
        self.device.bus_master = True
        is_line = self.irq is not None and self.irq.index is PciIrq.INTX
        self._state = _State(window, registers, buffer, vector, is_line)

    def _quiesce(self) -> None:
        state, self._state = self._state, None
        if state is None:
            return
        state.window.revoke("its driver was stopped")  # ends the calls of other threads first
        with self.device.regions.bar0.map() as window:
            _settle(EduRegisters(window))

    @property
    def _running(self) -> _State:
        if self._state is None:
            raise ClosedError(f"the driver of {self.device.name} is not started", hint="call start() first")
        return self._state

    def _copy(self, source: int, destination: int, size: int, timeout: float, *, to_memory: bool) -> None:
        running = self._running
        registers = running.registers
        if not size:
            return  # QEMU 7.2 takes 0 bytes as all bytes, and aborts
        registers.dma_command.wait_until(start=0, timeout=timeout)
        running.forget_interrupts()
        registers.dma_source.write(source)
        registers.dma_destination.write(destination)
        registers.dma_count.write(size)
        registers.dma_command.write(start=1, to_memory=to_memory, interrupt=running.vector is not None)
        running.await_interrupt(_DMA_DONE, timeout)
        registers.dma_command.wait_until(start=0, timeout=timeout)


@dataclass(frozen=True, slots=True)
class _State:
    """The state of a started driver."""

    window: Mmio
    registers: EduRegisters
    buffer: Buffer
    vector: Vector | None
    is_line: bool  # INTx, which the kernel masks at each interrupt

    def forget_interrupts(self) -> None:
        """Consume interrupts that arrived after their calls had timed out."""
        if self.vector is not None and self.vector.read():
            self.acknowledge()

    def await_interrupt(self, cause: int, timeout: float) -> None:
        """Wait for an interrupt with this cause, if the driver uses interrupts."""
        if self.vector is None:
            return
        end = time.monotonic() + timeout
        self.vector.wait(timeout)
        while not self.acknowledge() & cause:
            self.vector.wait(end - time.monotonic())

    def acknowledge(self) -> int:
        """Acknowledge the interrupt to the device; return its causes."""
        causes = self.registers.irq_status.read()
        self.registers.irq_acknowledge.write(causes)
        if self.vector is not None and self.is_line:
            self._unmask(self.vector)
        return causes

    def _unmask(self, vector: Vector) -> None:
        """Unmask INTx, now that the device does not raise it."""
        try:
            vector.unmask()
        except KernelError:
            self.registers.irq_status.read()  # raises ClosedError if the driver was stopped meanwhile
            raise


def _settle(registers: EduRegisters) -> None:
    """Make the device end its DMA and its interrupts: it has no reset."""
    registers.status.write(interrupt=0)
    registers.dma_command.wait_until(start=0, timeout=_TIMEOUT)
    registers.irq_acknowledge.write(_ALL)


def _require_in_buffer(offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > CAPACITY:
        raise DmaRangeError(
            f"{size:#x} bytes at {offset:#x} exceed edu's buffer",
            hint=f"{CAPACITY} bytes of the buffer can be used",
        )


def _require_reachable(iova: int, offset: int, size: int) -> None:
    _require_in_buffer(offset, size)
    if iova < 0 or iova + size - 1 > DMA_MASK:
        raise DmaRangeError(
            f"edu does not reach IOVA {iova:#x}", hint="allocate memory with iova_max=DMA_MASK"
        )
