"""Many buffers in one mapping."""

from __future__ import annotations

import threading
from functools import partial

from vfiotool.vfio.dma.iova import IovaAllocator
from vfiotool.vfio.dma.mapping import Buffer, Mapped
from vfiotool.vfio.dma.memory import Memory
from vfiotool.vfio.info import IovaRange

_GRANULE = 64  # a cache line: two buffers never share one


class Arena(Mapped):
    """Memory that is mapped once and split into buffers. Threads may share it.

    ``size`` bytes at ``address`` of this process, which devices reach at ``iova``.
    """

    def __init__(self, memory: Memory, iova: int) -> None:
        self.address = memory.address
        self.iova = iova
        self.size = memory.size
        self._memory = memory
        self._lock = threading.Lock()
        self._free = IovaAllocator([IovaRange(iova, iova + memory.size - 1)], _GRANULE)
        self._given: dict[int, Buffer] = {}

    def alloc(self, size: int, *, align: int = _GRANULE) -> Buffer:
        """Return a buffer of ``size`` bytes whose IOVA is a multiple of ``align``, a power of two.

        The buffer is not cleared. Closing it returns its memory to the arena; devices reach that memory
        until the arena is closed.

        Raises:
            IovaExhaustedError: the arena has no free memory of that size.
            ClosedError: the arena is closed.
        """
        self.require_open()
        whole = max(1, -(-size // _GRANULE)) * _GRANULE
        with self._lock:
            iova = self._free.allocate(whole, align=max(align, _GRANULE))
            buffer = Buffer.over(self._memory.source, self._memory.offset + iova - self.iova, iova, size)
            buffer.on_close(partial(self._take_back, iova))
            self._given[iova] = buffer
        return buffer

    def forget(self, why: str) -> None:
        """Mark the arena and all its buffers as closed: the kernel has removed the mapping."""
        super().forget(why)
        self._end(why)

    def close(self) -> None:
        """Remove the mapping and close all buffers; calls after the first do nothing."""
        super().close()
        self._end("its arena was closed")

    def _end(self, why: str) -> None:
        with self._lock:
            given, self._given = self._given, {}
        for buffer in given.values():
            buffer.forget(why)

    def _take_back(self, iova: int) -> None:
        with self._lock:
            if self._given.pop(iova, None) is not None:
                self._free.free(iova)

    def __repr__(self) -> str:
        return f"<Arena of {self.size:#x} bytes at IOVA {self.iova:#x}>"
