"""The interface of register spaces: bytes that are read and written by exact width."""

from __future__ import annotations

from typing import Protocol


class RegisterSpace(Protocol):
    """Bytes of a device that are accessed 8, 16, 32 or 64 bits at a time, each with one access of that width.

    Offsets count bytes from the start of the space and are multiples of the width. Values are unsigned, in
    the byte order of PCI (little endian). An access that lies outside, is misaligned or does not fit in the
    width is an error, and does not reach the device.
    """

    @property
    def size(self) -> int:
        """The number of bytes."""

    def read8(self, offset: int, /) -> int:
        """Return the 8 bits at an offset."""

    def read16(self, offset: int, /) -> int:
        """Return the 16 bits at an offset."""

    def read32(self, offset: int, /) -> int:
        """Return the 32 bits at an offset."""

    def read64(self, offset: int, /) -> int:
        """Return the 64 bits at an offset."""

    def write8(self, offset: int, value: int, /) -> None:
        """Write 8 bits at an offset."""

    def write16(self, offset: int, value: int, /) -> None:
        """Write 16 bits at an offset."""

    def write32(self, offset: int, value: int, /) -> None:
        """Write 32 bits at an offset."""

    def write64(self, offset: int, value: int, /) -> None:
        """Write 64 bits at an offset."""
