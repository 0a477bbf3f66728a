"""A model of a device, which a ``Device`` drives like the hardware.

Left out: memory that the model does not describe, hot resets, and features other than low power.
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
    """The base class of models of devices. Threads may share a model if its subclass allows that.

    ``bars`` maps the number of a BAR to its size in bytes, and ``irqs`` maps INTx, MSI or MSI-X to the number
    of vectors. ``config`` is the configuration space, as ``config_space`` returns it.
    """

    bars: ClassVar[Mapping[int, int]] = {0: 4096}
    irqs: ClassVar[Mapping[PciIrq, int]] = {PciIrq.MSI: 1}
    _file: OpenFile | None = None

    def __init__(self, address: str = "0000:00:10.0", *, config: bytes | None = None) -> None:
        self.address = address
        self.config = bytearray(config_space() if config is None else config)

    def read(self, bar: int, offset: int, width: int) -> int:
        """Return the value of a register of ``width`` bits; all ones if there is no register."""
        return (1 << width) - 1

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write a register of ``width`` bits; a write without a register is lost."""

    def reset(self) -> None:
        """Return to the state after power-on, except for configuration space, which the kernel restores."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to configuration space: only the command register and the interrupt line can be changed."""
        for at, byte in enumerate(data, offset):
            if at in (_COMMAND, _COMMAND + 1):
                mask = _COMMAND_WRITABLE >> 8 * (at - _COMMAND) & 0xFF
                self.config[at] = self.config[at] & ~mask | byte & mask
            elif at == _INTERRUPT_LINE:
                self.config[at] = byte

    @property
    def memory(self) -> bool:
        """True if the device responds to accesses to its BARs."""
        return bool(self.config[_COMMAND] & _MEMORY)

    @property
    def bus_master(self) -> bool:
        """True if the device may do DMA and send MSI and MSI-X messages."""
        return bool(self.config[_COMMAND] & _BUS_MASTER)

    def dma_read(self, iova: int, size: int) -> bytes:
        """Read memory by DMA.

        Raises:
            DmaFault: the memory is not mapped for reading, or bus mastering is off.
        """
        return self._space(iova, "read").read(iova, size)

    def dma_write(self, iova: int, data: bytes) -> None:
        """Write memory by DMA.

        Raises:
            DmaFault: the memory is not mapped for writing, or bus mastering is off.
        """
        self._space(iova, "write").write(iova, data)

    def interrupt(self, vector: int = 0) -> None:
        """Send an interrupt by MSI-X or MSI if enabled; otherwise assert INTx until ``calm()``."""
        if self._file is not None:
            enabled = self._file.irqs.enabled
            if enabled in (PciIrq.MSI, PciIrq.MSIX):
                self._file.irqs.send(enabled, vector)
            else:
                self._file.irqs.set_line(True)

    def calm(self) -> None:
        """Deassert INTx."""
        if self._file is not None:
            self._file.irqs.set_line(False)

    def ask_back(self) -> None:
        """Signal the request interrupt, as the kernel does while an unbind waits for the device."""
        if self._file is not None:
            self._file.irqs.request()

    def opened(self, file: OpenFile) -> None:
        """Connect an open file. Like vfio-pci, reset the device and turn memory on and bus mastering off."""
        self.reset()
        self._file = file
        self.config[_COMMAND] = self.config[_COMMAND] & ~_BUS_MASTER | _MEMORY

    def closed(self, file: OpenFile) -> None:
        """Disconnect a closed file."""
        if self._file is file:
            self._file = None

    def _space(self, iova: int, verb: str) -> DmaSpace:
        if self._file is None or not self.bus_master:
            raise DmaFault(iova, verb)
        return self._file.space
