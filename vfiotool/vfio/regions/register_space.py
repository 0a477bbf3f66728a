"""What registers stand on: anything whose bytes are read and written by exact width."""

from __future__ import annotations

from typing import Protocol


class RegisterSpace(Protocol):
    """Bytes of a device that are accessed 8, 16, 32 or 64 bits at a time, each with one access of that width.

    Offsets count bytes from the space's start and are multiples of the width; values are unsigned, in the
    byte order of PCI (little endian). What lies outside, is misaligned or does not fit in the width
    is an error that leaves the device alone.
    """

    @property
    def size(self) -> int:
        """Return how many bytes there are."""

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
