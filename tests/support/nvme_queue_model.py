"""A model of an NVMe controller's side of a queue pair, in plain memory."""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

from vfiotool.drivers.nvme.queue_pair import QueuePair, QueuePairLayout
from vfiotool.errors import IrqTimeoutError
from vfiotool.vfio.dma.mapping import Buffer
from vfiotool.vfio.irqs.irqs import Vector
from vfiotool.vfio.mmio.mmio import Mmio

IOVA = 0x7_0000_0000
PAGE = 4096
CSTS = 0x1C
DOORBELLS = 0x1008, 0x100C


class Command(NamedTuple):
    """The fields of a submission queue entry, in order."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    cdw2: int
    cdw3: int
    mptr: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @classmethod
    def of(cls, data: bytes) -> Command:
        return cls(*struct.unpack("<BBHIIIQQQIIIIII", data))

    @property
    def lba(self) -> int:
        return self.cdw10 | self.cdw11 << 32

    @property
    def blocks(self) -> int:
        return (self.cdw12 & 0xFFFF) + 1


def plain_memory(size: int, iova: int = IOVA) -> Buffer:
    """Memory like that of ``Dma.alloc``, which no device reaches."""
    buffer = Buffer.over(mmap.mmap(-1, -(-size // PAGE) * PAGE), 0, iova, size)
    buffer.on_close(lambda: None)
    return buffer


class QueueModel:
    """A queue pair, and its controller, which follows the specification exactly.

    ``carry_out`` gives the status and result of each command; ``None`` leaves the command for
    ``complete()``. With ``interrupts`` the controller does a ``step()`` whenever the ring awaits one.
    """

    def __init__(
        self,
        entries: int = 8,
        list_entries: int = 4,
        *,
        interrupts: bool = False,
        carry_out: Callable[[Command], tuple[int, int] | None] = lambda command: (0, 0),
    ) -> None:
        layout = QueuePairLayout(entries, list_entries)
        self.entries = entries
        self.memory = plain_memory(layout.size)
        self.registers = Mmio.of_memory(bytearray(0x2000), name="BAR0")
        self.pair = QueuePair(
            "queue 1", self.memory, layout, self.registers, DOORBELLS,
            nsid=1, block_size=512, vector=cast("Vector", self) if interrupts else None,
        )  # fmt: skip
        self.carry_out = carry_out
        self.waiting: list[Command] = []
        self.seen: list[Command] = []
        self.waits = 0
        self.tellings = 0  # observed writes of the completion queue's doorbell
        self._head = 0
        self._sq_head = self._cq_tail = 0
        self._phase = 1
        self._completions = layout.completions

    def fetch(self) -> None:
        """Fetch all commands up to the doorbell."""
        tail = self.registers.read32(DOORBELLS[0])
        assert tail < self.entries
        while self._sq_head != tail:
            command = Command.of(self.memory[self._sq_head * 64 : self._sq_head * 64 + 64])
            self._sq_head = (self._sq_head + 1) % self.entries
            assert command.cid not in [other.cid for other in self.waiting]
            self.waiting.append(command)
            self.seen.append(command)

    def complete(self, cid: int, status: int = 0, result: int = 0) -> None:
        """Complete a fetched command, or any other."""
        self.waiting = [command for command in self.waiting if command.cid != cid]
        head = self.registers.read32(DOORBELLS[1])
        self.tellings += head != self._head
        self._head = head
        assert (self._cq_tail + 1) % self.entries != head, "the completion queue is full"
        at = self._completions + self._cq_tail * 16
        self.memory[at : at + 14] = struct.pack("<IIHHH", result, 0, self._sq_head, 1, cid)
        self.memory[at + 14 : at + 16] = (status << 1 | self._phase).to_bytes(2, "little")
        self._cq_tail = (self._cq_tail + 1) % self.entries
        if self._cq_tail == 0:
            self._phase ^= 1

    def step(self) -> bool:
        """Fetch commands, and execute the last: controllers may choose the order."""
        self.fetch()
        answer = self.carry_out(self.waiting[-1]) if self.waiting else None
        if answer is not None:
            self.complete(self.waiting[-1].cid, *answer)
        return answer is not None

    def wait(self, timeout: float) -> int:
        """Act as the vector that the queue waits for."""
        self.waits += 1
        if not self.step():
            raise IrqTimeoutError("nothing came, and time is over at once")
        return 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the controller in a thread, for a ``with`` block."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while not stop.is_set():
                    self.step()
                    time.sleep(0)  # so that the other thread gets the GIL
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            assert not failures, failures
