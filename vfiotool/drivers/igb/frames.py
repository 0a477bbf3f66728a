"""The descriptor rings in memory, and the frames that they send and receive."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

from vfiotool.drivers.igb.errors import IgbError
from vfiotool.errors import DmaRangeError
from vfiotool.vfio.dma.mapping import Buffer

PAGE = 4096
SIZE = 4 * PAGE
"""Bytes of memory for the rings and frames; each ring takes a page."""
TRANSMIT, RECEIVE, _HEADER, _SCRATCH = range(0, SIZE, PAGE)  # offsets in this memory
DESCRIPTOR_SIZE = 16
ENTRIES = PAGE // DESCRIPTOR_SIZE
DEPTH = ENTRIES // 2 - 1
"""How many frames can be in flight: a ring whose tail is its head is empty."""

_TO_SEND = struct.Struct("<QII")  # address; command, type and length; status, and the whole frame's length
_TO_FILL = struct.Struct("<QQ")  # address of the data, and of a separate header
_FILLED = struct.Struct("<8xIH")  # errors and status, length
_DATA = 1 << 29 | 0b0011 << 20  # an advanced descriptor, of data
_ADD_CHECKSUM, _END = 1 << 25, 1 << 24
_WHOLE_SHIFT = 14
_DONE, _HAS_END, _ERRORS = 1 << 0, 1 << 1, 0xFFF << 20

# Two locally administered addresses, and an EtherType for experiments (IEEE 802).
_ETHERNET = bytes.fromhex("020000000001 020000000002 88b5")


class Frames:
    """Frames that copy data between two places in memory; they return in the order they were sent.

    Each frame has two descriptors in both rings: of a page with its header, which is discarded, and of its
    data. This way no data is parsed as a header, and all of it goes to its destination at once.
    """

    def __init__(self, memory: Buffer, name: str) -> None:
        """Lay the rings out in zeroed memory."""
        self.memory = memory
        self._name = name
        self._sizes: deque[int] = deque()
        self._posted = self._taken = 0
        memory[_HEADER : _HEADER + len(_ETHERNET)] = _ETHERNET

    @property
    def under_way(self) -> int:
        """How many frames have not returned."""
        return len(self._sizes)

    @property
    def tail(self) -> int:
        """The first descriptor that the device does not have yet, in both rings."""
        return 2 * self._posted % ENTRIES

    def post(self, source: int, destination: int, size: int) -> None:
        """Write a frame's descriptors (7.1.5.1, 7.2.2.3); the device gets them with the tails."""
        view, iova, whole = self.memory.view, self.memory.iova, PAGE + size << _WHOLE_SHIFT
        head, data = _place(2 * self._posted), _place(2 * self._posted + 1)
        _TO_FILL.pack_into(view, RECEIVE + head, iova + _SCRATCH, 0)
        _TO_FILL.pack_into(view, RECEIVE + data, destination, 0)
        _TO_SEND.pack_into(view, TRANSMIT + head, iova + _HEADER, _DATA | _ADD_CHECKSUM | PAGE, whole)
        _TO_SEND.pack_into(view, TRANSMIT + data, source, _DATA | _ADD_CHECKSUM | _END | size, whole)
        self._posted += 1
        self._sizes.append(size)

    def take(self) -> bool:
        """Take the first sent frame, if it has returned (7.1.5.2). Return True if it has.

        Raises:
            IgbError: the received frame differs from the sent frame.
            ClosedError: the device can no longer reach the memory.
        """
        self.memory.require_open()
        if not self._sizes:
            return False
        status, length = _FILLED.unpack_from(self.memory.view, RECEIVE + _place(2 * self._taken + 1))
        if not status & _DONE:
            return False
        if status & _ERRORS or not status & _HAS_END or length != self._sizes[0]:
            raise IgbError(
                f"{self._name} received {length} bytes for {self._sizes[0]}, with status {status:#x}",
                hint="check whether another source sends frames to the device",
            )
        self._taken += 1
        self._sizes.popleft()
        return True


def pieces(source: int, destination: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the parts of a copy; none crosses a page of its source, since QEMU would lose such a part."""
    while size:
        part = min(size, PAGE - source % PAGE)
        yield source, destination, part
        source, destination, size = source + part, destination + part, size - part


def require_range(source: int, destination: int, size: int) -> None:
    """Raise DmaRangeError for a copy that exceeds 64 bits."""
    if size < 0 or not all(0 <= iova <= (1 << 64) - size for iova in (source, destination)):
        raise DmaRangeError(
            f"{size:#x} bytes cannot be copied from IOVA {source:#x} to {destination:#x}",
            hint="pass IOVAs and a size that stay within 64 bits",
        )


def _place(index: int) -> int:
    """Return the offset of a descriptor in its ring; the index counts over all rounds."""
    return index % ENTRIES * DESCRIPTOR_SIZE
