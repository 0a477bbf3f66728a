"""Models of what QEMU's pci-testdev and igb do, as far as their drivers use them."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Mapping
from typing import ClassVar

from vfiotool.testing import DmaFault, FakeDevice, config_space
from vfiotool.vfio.uapi import PciIrq

TEST_AT, COUNT_AT, NAME_AT = 0x00, 0x0C, 0x10


class FakeTestdev(FakeDevice):
    """pci-testdev: ``offered`` has (width, offset, data, name) for each test of BAR0."""

    bars: ClassVar[Mapping[int, int]] = {0: 4096}
    irqs: ClassVar[Mapping[PciIrq, int]] = {}

    def __init__(self, offered: list[tuple[int, int, int, bytes]] | None = None) -> None:
        super().__init__(config=config_space(vendor=0x1B36, device=0x0005))
        self.offered = offered or [(1, 2048, 0xFA, b"counted\0"), (4, 2052, 0x1234_5678, b"wide\0")]
        self.reset()

    def reset(self) -> None:
        """End the test."""
        self.current: int | None = None
        self.count = 0

    def read(self, bar: int, offset: int, width: int) -> int:
        """Return what the header has; 0 where no test was started."""
        header = b""
        if self.current is not None and self.current < len(self.offered):
            test, at, data, name = self.offered[self.current]
            header = struct.pack("<BBHIII", 0, test, 0, at, data, self.count) + name
        return int.from_bytes(header[offset : offset + width // 8], "little")

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Start a test, or count a write that is its own."""
        if offset == TEST_AT:
            self.current, self.count = (None if value == 0xFF else value), 0
        elif self.current is not None and self.current < len(self.offered):
            size, at, data, _name = self.offered[self.current]
            self.count += (size * 8, at, data) == (width, offset, value)


CTRL, STATUS, MDIC, RCTL, TCTL = 0x0000, 0x0008, 0x0020, 0x0100, 0x0400
EICS, EIMS, EIMC, EIAC = 0x1520, 0x1524, 0x1528, 0x152C
IVAR, RECEIVE, TRANSMIT = 0x1700, 0xC000, 0xE000
BASE_LOW, BASE_HIGH, LENGTH, BUFFERS, HEAD, TAIL, CONTROL = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x18, 0x28
_RESET, _MASTER_DISABLE, _ENABLE, _QUEUE_ENABLE = 1 << 26, 1 << 2, 1 << 1, 1 << 25
_LINK_UP, _MASTER_ENABLED = 1 << 1, 1 << 19
_PHY_RESTART, _READY, _ERROR = 1 << 9, 1 << 28, 1 << 30
_ADVANCED_DATA, _END = 1 << 29 | 3 << 20, 1 << 24


class FakeIgb(FakeDevice):
    """An 82576 without a network: what queue 0 sends is what queue 0 receives.

    As with QEMU's, what cannot be read is not sent, what cannot be written is lost without a word, and a
    message clears its cause where that is told to clear itself. ``sent`` counts frames.
    """

    bars: ClassVar[Mapping[int, int]] = {0: 0x20000, 3: 0x4000}
    irqs: ClassVar[Mapping[PciIrq, int]] = {PciIrq.INTX: 1, PciIrq.MSIX: 10}

    def __init__(self) -> None:
        msix = (0x11, 0x70, struct.pack("<HII", 9, 3, 0x2000 | 3))
        super().__init__(config=config_space(vendor=0x8086, device=0x10C9, capabilities=[msix]))
        self._lock = threading.Lock()  # a bus brings one access after the other
        self.sent = 0
        self.resets = 0
        self.keeps_master = False  # it does not end its DMA when it is told to
        self.refuses_phy = False
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.keeps_master = False
        self.registers: dict[int, int] = {}
        self.causes = 0
        self.resets += 1

    def read(self, bar: int, offset: int, width: int) -> int:
        """Return a register."""
        with self._lock:
            value = self.registers.get(offset, 0)
            if offset == STATUS and (self.keeps_master or not self.registers.get(CTRL, 0) & _MASTER_DISABLE):
                value |= _MASTER_ENABLED
            return value

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write a register, and do what that starts."""
        with self._lock:
            self._write(offset, value)

    def _write(self, offset: int, value: int) -> None:
        if offset == CTRL and value & _RESET:
            self.reset()
        elif offset == MDIC:
            self._talk_to_phy(value)
        elif offset == EICS:
            self._raise(value)
        elif offset in (EIMS, EIMC):
            kept = self.registers.get(EIMS, 0)
            self.registers[EIMS] = kept | value if offset == EIMS else kept & ~value
            self._raise(0)
        else:
            self.registers[offset] = value
            if offset == TRANSMIT + TAIL:
                with contextlib.suppress(DmaFault):  # of the rings: its driver has gone
                    self._send()

    def _talk_to_phy(self, value: int) -> None:
        self.registers[MDIC] = value | _READY | (_ERROR if self.refuses_phy else 0)
        if value & _PHY_RESTART:
            self.registers[STATUS] = _LINK_UP

    def _raise(self, causes: int) -> None:
        self.causes |= causes
        raised = self.causes & self.registers.get(EIMS, 0)
        self.causes &= ~(raised & self.registers.get(EIAC, 0))
        for vector in range(10):
            if raised >> vector & 1:
                self.interrupt(vector)

    def _ring(self, queue: int) -> tuple[int, int, int]:
        """Return where a queue's next descriptor is, and the head and tail."""
        low, high, head, tail = (
            self.registers.get(queue + at, 0) for at in (BASE_LOW, BASE_HIGH, HEAD, TAIL)
        )
        return (high << 32 | low) + 16 * head, head, tail

    def _advance(self, queue: int) -> None:
        entries = self.registers[queue + LENGTH] // 16
        self.registers[queue + HEAD] = (self.registers[queue + HEAD] + 1) % entries

    def _send(self) -> None:
        if not self.registers.get(TCTL, 0) & _ENABLE or not self._is_enabled(TRANSMIT):
            return
        frame, lost = b"", False
        while True:
            at, head, tail = self._ring(TRANSMIT)
            if head == tail:
                return
            address, command, _status = struct.unpack("<QII", self.dma_read(at, 16))
            assert command & _ADVANCED_DATA == _ADVANCED_DATA
            try:
                frame += self.dma_read(address, command & 0xFFFF)
            except DmaFault:
                lost = True
            self._advance(TRANSMIT)
            if command & _END:
                self.sent += 1
                if not lost:
                    self._receive(frame)
                frame, lost = b"", False

    def _receive(self, frame: bytes) -> None:
        if not self.registers.get(RCTL, 0) & _ENABLE or not self._is_enabled(RECEIVE):
            return
        size = (self.registers[RECEIVE + BUFFERS] & 0x7F) << 10
        _at, head, tail = self._ring(RECEIVE)
        if len(frame) > (tail - head) % (self.registers[RECEIVE + LENGTH] // 16) * size:
            return
        for start in range(0, len(frame), size):
            part, is_end = frame[start : start + size], start + size >= len(frame)
            at, _head, _tail = self._ring(RECEIVE)
            (address,) = struct.unpack("<Q", self.dma_read(at, 8))
            with contextlib.suppress(DmaFault):
                self.dma_write(address, part)
            self.dma_write(at, struct.pack("<QIHH", 0, 1 | is_end << 1, len(part), 0))
            self._advance(RECEIVE)
        place = self.registers.get(IVAR, 0) & 0xFF
        if place & 0x80:
            self._raise(1 << (place & 0x1F))

    def _is_enabled(self, queue: int) -> bool:
        return bool(self.registers.get(queue + CONTROL, 0) & _QUEUE_ENABLE)
