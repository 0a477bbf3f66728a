"""The address space of a fake device's DMA: its interface, and the error of a DMA fault."""

from __future__ import annotations

from typing import Protocol


class DmaFault(Exception):  # noqa: N818 - the IOMMU's own word
    """The IOMMU refused an access of a device: ``iova`` is not mapped, or not for this access.

    ``verb`` is "read" or "write".
    """

    def __init__(self, iova: int, verb: str) -> None:
        super().__init__(f"a DMA {verb} at IOVA {iova:#x} faults")
        self.iova = iova
        self.verb = verb


class DmaSpace(Protocol):
    """An address space, as a device reaches it. Threads may share it."""

    def read(self, iova: int, size: int) -> bytes:
        """Read ``size`` bytes as a device does.

        Raises:
            DmaFault: a byte is not mapped for reading.
        """

    def write(self, iova: int, data: bytes) -> None:
        """Write as a device does, up to the first byte that is not mapped for writing.

        Raises:
            DmaFault: a byte is not mapped for writing.
        """
