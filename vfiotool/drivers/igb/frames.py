"""The rings of descriptors in memory, and the frames that they send and receive."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

from vfiotool.drivers.igb.errors import IgbError
from vfiotool.errors import DmaRangeError
from vfiotool.vfio.dma.mapping import Buffer

PAGE = 4096
SIZE = 4 * PAGE
"""Bytes of the memory that they take, of which both rings are a page."""
TRANSMIT, RECEIVE, _HEADER, _SCRATCH = range(0, SIZE, PAGE)  # what is where in it
DESCRIPTOR_SIZE = 16
ENTRIES = PAGE // DESCRIPTOR_SIZE
DEPTH = ENTRIES // 2 - 1
"""How many frames can be under way: a ring whose tail is its head is empty."""

_TO_SEND = struct.Struct("<QII")  # address; command, kind and length; status, and the whole frame's length
_TO_FILL = struct.Struct("<QQ")  # address of the data, and of a header that is apart
_FILLED = struct.Struct("<8xIH")  # errors and status, length
_DATA = 1 << 29 | 0b0011 << 20  # an advanced descriptor, of data
_ADD_CHECKSUM, _END = 1 << 25, 1 << 24
_WHOLE_SHIFT = 14
_DONE, _HAS_END, _ERRORS = 1 << 0, 1 << 1, 0xFFF << 20

# From an address that is administered locally to another, of a type that is for experiments (IEEE 802).
_ETHERNET = bytes.fromhex("020000000001 020000000002 88b5")


class Frames:
    """Frames that bring data from one place in memory to another, and come back in the order they were sent.

    Each has two descriptors in both rings: of a page with its header, which is thrown away, and of its data.
    So none of the data is taken for a header, whatever it is, and it goes where it belongs at once.
    """

    def __init__(self, memory: Buffer, name: str) -> None:
        """Lay them out in memory that is all 0."""
        self.memory = memory
        self._name = name
        self._sizes: deque[int] = deque()
        self._posted = self._taken = 0
        memory[_HEADER : _HEADER + len(_ETHERNET)] = _ETHERNET

    @property
    def under_way(self) -> int:
        """How many frames have not come back."""
        return len(self._sizes)

    @property
    def tail(self) -> int:
        """The first descriptor that the device does not have yet, in both rings."""
        return 2 * self._posted % ENTRIES

    def post(self, source: int, destination: int, size: int) -> None:
        """Write a frame's descriptors (7.1.5.1, 7.2.2.3); the device has them with the tails."""
        view, iova, whole = self.memory.view, self.memory.iova, PAGE + size << _WHOLE_SHIFT
        head, data = _place(2 * self._posted), _place(2 * self._posted + 1)
        _TO_FILL.pack_into(view, RECEIVE + head, iova + _SCRATCH, 0)
        _TO_FILL.pack_into(view, RECEIVE + data, destination, 0)
        _TO_SEND.pack_into(view, TRANSMIT + head, iova + _HEADER, _DATA | _ADD_CHECKSUM | PAGE, whole)
        _TO_SEND.pack_into(view, TRANSMIT + data, source, _DATA | _ADD_CHECKSUM | _END | size, whole)
        self._posted += 1
        self._sizes.append(size)

    def take(self) -> bool:
        """Take the frame that was sent first, if it has come back (7.1.5.2), and say whether it has.

        Raises:
            IgbError: it is not what was sent.
            ClosedError: the device does not reach the memory any more.
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
                hint="has something else sent a frame?",
            )
        self._taken += 1
        self._sizes.popleft()
        return True


def pieces(source: int, destination: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the parts of a copy; none crosses a page of its source, for QEMU would lose that one."""
    while size:
        part = min(size, PAGE - source % PAGE)
        yield source, destination, part
        source, destination, size = source + part, destination + part, size - part


def require_range(source: int, destination: int, size: int) -> None:
    """Raise DmaRangeError for a copy that leaves the 64 bits."""
    if size < 0 or not all(0 <= iova <= (1 << 64) - size for iova in (source, destination)):
        raise DmaRangeError(
            f"there is no copy of {size:#x} bytes from IOVA {source:#x} to {destination:#x}",
            hint="give IOVAs and a size that stay within 64 bits",
        )


def _place(index: int) -> int:
    """Return where a descriptor is in its ring, counted over all rounds."""
    return index % ENTRIES * DESCRIPTOR_SIZE
