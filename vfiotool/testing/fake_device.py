"""A device without hardware: a model of what it does, which a ``Device`` drives as it would the real one.

What is left out: memory that the model does not describe, hot resets, and features other than low power.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from vfiotool.testing.built_config import config_space
from vfiotool.testing.dma_space import DmaFault, DmaSpace
from vfiotool.testing.fake_irqs import FakeIrqs
from vfiotool.vfio.uapi import PciIrq

_COMMAND = 4
_INTERRUPT_LINE = 0x3C
_MEMORY = 1 << 1
_BUS_MASTER = 1 << 2
_COMMAND_WRITABLE = 0x0547  # I/O, memory, bus master, parity, SERR, INTx off


class OpenFile(Protocol):
    """The open file of a fake device, as its model uses it."""

    @property
    def irqs(self) -> FakeIrqs:
        """The device's interrupts."""

    @property
    def space(self) -> DmaSpace:
        """The address space that the device is in."""


class FakeDevice:
    """What a device does: a model, to be subclassed. Threads may share it as far as the subclass lets them.

    ``bars`` are the sizes of its BARs, in bytes, and ``irqs`` how many vectors of INTx, MSI or MSI-X it has.
    ``config`` is its configuration space, as ``config_space`` makes it.
    """

    bars: ClassVar[Mapping[int, int]] = {0: 4096}
    irqs: ClassVar[Mapping[PciIrq, int]] = {PciIrq.MSI: 1}
    _file: OpenFile | None = None

    def __init__(self, address: str = "0000:00:10.0", *, config: bytes | None = None) -> None:
        self.address = address
        self.config = bytearray(config_space() if config is None else config)

    def read(self, bar: int, offset: int, width: int) -> int:
        """Return what a read of ``width`` bits gives; all ones where there is no register."""
        return (1 << width) - 1

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Take a write of ``width`` bits; where there is no register it is lost."""

    def reset(self) -> None:
        """Be as after power-on, but for configuration space, which the kernel restores."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space: the command register and the interrupt line keep it."""
        for at, byte in enumerate(data, offset):
            if at in (_COMMAND, _COMMAND + 1):
                mask = _COMMAND_WRITABLE >> 8 * (at - _COMMAND) & 0xFF
                self.config[at] = self.config[at] & ~mask | byte & mask
            elif at == _INTERRUPT_LINE:
                self.config[at] = byte

    @property
    def memory(self) -> bool:
        """Say whether it answers accesses to its BARs."""
        return bool(self.config[_COMMAND] & _MEMORY)

    @property
    def bus_master(self) -> bool:
        """Say whether it may do DMA and send messages."""
        return bool(self.config[_COMMAND] & _BUS_MASTER)

    def dma_read(self, iova: int, size: int) -> bytes:
        """Read memory.

        Raises:
            DmaFault: it is not mapped for that, or bus mastering is off.
        """
        return self._space(iova, "read").read(iova, size)

    def dma_write(self, iova: int, data: bytes) -> None:
        """Write memory.

        Raises:
            DmaFault: it is not mapped for that, or bus mastering is off.
        """
        self._space(iova, "write").write(iova, data)

    def interrupt(self, vector: int = 0) -> None:
        """Raise an interrupt: MSI-X or MSI, whichever is enabled, else the line of INTx until ``calm()``."""
        if self._file is not None:
            enabled = self._file.irqs.enabled
            if enabled in (PciIrq.MSI, PciIrq.MSIX):
                self._file.irqs.send(enabled, vector)
            else:
                self._file.irqs.set_line(True)

    def calm(self) -> None:
        """Lower the line of INTx."""
        if self._file is not None:
            self._file.irqs.set_line(False)

    def ask_back(self) -> None:
        """Have the kernel ask for the device, as when something unbinds it."""
        if self._file is not None:
            self._file.irqs.request()

    def opened(self, file: OpenFile) -> None:
        """Take note of who has it: vfio-pci resets it, and turns memory on and bus mastering off."""
        self.reset()
        self._file = file
        self.config[_COMMAND] = self.config[_COMMAND] & ~_BUS_MASTER | _MEMORY

    def closed(self, file: OpenFile) -> None:
        """Take note that who had it does no longer."""
        if self._file is file:
            self._file = None

    def _space(self, iova: int, verb: str) -> DmaSpace:
        if self._file is None or not self.bus_master:
            raise DmaFault(iova, verb)
        return self._file.space
