"""QEMU's educational device as a model (QEMU docs/specs/edu)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from vfiotool.testing.built_config import config_space
from vfiotool.testing.dma_space import DmaFault
from vfiotool.testing.fake_device import FakeDevice
from vfiotool.vfio.uapi import PciIrq

_VENDOR, _DEVICE, _OTHERS = 0x1234, 0x11E8, 0xFF
_REVISION = 0x10
_IDENT = 0x010000ED
_BUFFER_AT, _BUFFER_SIZE = 0x40000, 4096
_MSI_AT, _MSI = 0x40, 0x05

_AT_IDENT, _AT_INVERSE, _AT_FACTORIAL, _AT_STATUS = 0x00, 0x04, 0x08, 0x20
_AT_IRQ_STATUS, _AT_IRQ_RAISE, _AT_IRQ_ACK = 0x24, 0x60, 0x64
_AT_SOURCE, _AT_DESTINATION, _AT_COUNT, _AT_COMMAND = 0x80, 0x88, 0x90, 0x98

_IRQ_WHEN_DONE = 0x80  # of the status register
_FACTORIAL_IRQ, _DMA_IRQ = 0x001, 0x100
_START, _TO_RAM, _IRQ_AFTER = 1 << 0, 1 << 1, 1 << 2  # of the DMA command


class FakeEdu(FakeDevice):
    """edu. It computes and copies immediately; QEMU's device takes 100 ms.

    Its DMA reaches 28 bits of IOVA. As in QEMU, DMA that faults is lost silently, and the interrupt after the
    transfer is sent nevertheless. ``buffer`` is the device's 4096 bytes of memory, at 0x40000 for DMA. QEMU
    (up to 10) accepts no transfer that includes the buffer's last byte.
    """

    bars: ClassVar[Mapping[int, int]] = {0: 1 << 20}
    irqs: ClassVar[Mapping[PciIrq, int]] = {PciIrq.INTX: 1, PciIrq.MSI: 1}

    def __init__(self, address: str = "0000:00:10.0", *, dma_mask: int = (1 << 28) - 1) -> None:
        msi = (_MSI, _MSI_AT, bytes(12))
        super().__init__(
            address,
            config=config_space(
                vendor=_VENDOR,
                device=_DEVICE,
                class_code=_OTHERS << 16,
                revision=_REVISION,
                capabilities=[msi],
            ),
        )
        self.dma_mask = dma_mask
        self.reset()

    def reset(self) -> None:
        """Reset everything except the buffer."""
        self.buffer = getattr(self, "buffer", bytearray(_BUFFER_SIZE))
        self._inverse = self._status = self._irq_status = 0
        self._factorial = 1
        self._dma = dict.fromkeys((_AT_SOURCE, _AT_DESTINATION, _AT_COUNT, _AT_COMMAND), 0)

    def read(self, bar: int, offset: int, width: int) -> int:
        """Return a register: 32 bits wide, or from offset 0x80 on also 64 bits."""
        nothing = (1 << width) - 1
        if width != 32 and (width != 64 or offset < _AT_SOURCE):
            return nothing
        registers = {
            _AT_IDENT: _IDENT,
            _AT_INVERSE: self._inverse,
            _AT_FACTORIAL: self._factorial,
            _AT_STATUS: self._status,
            _AT_IRQ_STATUS: self._irq_status,
            **self._dma,
        }
        return registers.get(offset, nothing) & nothing

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write a register, in the widths that ``read`` accepts."""
        if width != 32 and (width != 64 or offset < _AT_SOURCE):
            return
        if offset == _AT_INVERSE:
            self._inverse = ~value & 0xFFFF_FFFF
        elif offset == _AT_FACTORIAL:
            self._compute(value)
        elif offset == _AT_STATUS:
            self._status = value & _IRQ_WHEN_DONE
        elif offset == _AT_IRQ_RAISE:
            self._raise(value)
        elif offset == _AT_IRQ_ACK:
            self._acknowledge(value)
        elif offset in self._dma:
            self._dma[offset] = value
            if offset == _AT_COMMAND and value & _START:
                self._run(value)

    def _compute(self, number: int) -> None:
        # 2^32 divides the factorial of 34 and of every larger number.
        self._factorial = math.factorial(number) & 0xFFFF_FFFF if number < 34 else 0
        if self._status & _IRQ_WHEN_DONE:
            self._raise(_FACTORIAL_IRQ)

    def _raise(self, bits: int) -> None:
        self._irq_status |= bits
        if self._irq_status:
            self.interrupt()

    def _acknowledge(self, bits: int) -> None:
        self._irq_status &= ~bits
        if not self._irq_status:
            self.calm()

    def _run(self, command: int) -> None:
        source, destination, size = (self._dma[at] for at in (_AT_SOURCE, _AT_DESTINATION, _AT_COUNT))
        try:
            if command & _TO_RAM:
                start = _in_buffer(source, size)
                self.dma_write(destination & self.dma_mask, bytes(self.buffer[start : start + size]))
            else:
                start = _in_buffer(destination, size)
                self.buffer[start : start + size] = self.dma_read(source & self.dma_mask, size)
        except DmaFault:
            pass
        self._dma[_AT_COMMAND] = command & ~_START
        if command & _IRQ_AFTER:
            self._raise(_DMA_IRQ)


def _in_buffer(address: int, size: int) -> int:
    """Return the offset in the buffer; QEMU aborts outside of the buffer, and at its last byte."""
    start = address - _BUFFER_AT
    if start < 0 or size <= 0 or start + size >= _BUFFER_SIZE:
        raise AssertionError(f"edu: {size:#x} bytes at {address:#x} are outside of the buffer")
    return start
