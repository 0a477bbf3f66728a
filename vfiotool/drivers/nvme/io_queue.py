"""An I/O queue pair: reads and writes of a namespace, one at a time or many at once."""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from vfiotool.drivers.nvme import commands
from vfiotool.drivers.nvme.commands import Completion
from vfiotool.drivers.nvme.errors import NvmeStatusError
from vfiotool.drivers.nvme.identify import NamespaceInfo
from vfiotool.drivers.nvme.queue_pair import QueuePair, make_ops
from vfiotool.errors import ClosedError, UsageError
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.dma.mapping import Buffer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_TIMEOUT = 30.0
_SCRATCH = 128 << 10
_NAMES = {commands.READ: "read", commands.WRITE: "write"}


class IoQueue:
    """A queue of a started ``Nvme``, which creates it; a context manager that deletes it.

    Blocks are the namespace's, counted from 0. When a call has returned, its data is in memory, or with the
    controller: ``flush()`` makes it durable. ``timeout`` is the longest time, in seconds, in which no command
    completes.

    All calls raise NvmeStatusError if the controller refuses a command, NvmeTimeoutError if it does not
    respond, NvmeError if it failed, ClosedError after ``close()`` or ``Nvme.stop()``, and UsageError for
    arguments that the namespace or the queue does not have: the controller has seen nothing then.

    One thread at a time may use it.
    """

    def __init__(
        self,
        number: int,
        pair: QueuePair,
        namespace: NamespaceInfo,
        max_blocks: int,
        dma: Dma,
        delete: Callable[[IoQueue], None],
    ) -> None:
        self.number = number
        self.pair = pair
        self.namespace = namespace
        self.max_blocks = max_blocks
        """The most blocks of one command; ``read()``, ``write()`` and similar methods take any number."""
        self._dma = dma
        self._delete = delete
        self._resources = ExitStack()
        self._resources.enter_context(pair.memory)
        # Held while memory is added or all of it freed; reentrant: a signal handler may stop the driver.
        self._holding = threading.RLock()
        self._spare: Buffer | None = None
        self._ended = False

    @property
    def depth(self) -> int:
        """The most commands that the queue can have at a time."""
        return self.pair.layout.entries - 1

    def read(self, lba: int, blocks: int = 1, *, timeout: float = _TIMEOUT) -> bytes:
        """Read blocks, and return their bytes."""
        size = blocks * self.namespace.block_size
        with self._scratch(size) as buffer:
            self._transfer(commands.READ, lba, blocks, buffer, timeout)
            return buffer[:size]

    def write(self, lba: int, data: ReadableBuffer, *, timeout: float = _TIMEOUT) -> None:
        """Write whole blocks of bytes."""
        with memoryview(data).cast("B") as view, self._scratch(view.nbytes) as buffer:
            buffer[: view.nbytes] = view
            self._transfer(commands.WRITE, lba, self._blocks_of(view.nbytes), buffer, timeout)

    def read_into(self, lba: int, buffer: Buffer, *, timeout: float = _TIMEOUT) -> None:
        """Read as many blocks as fit in a buffer, without a copy."""
        self._transfer(commands.READ, lba, self._blocks_of(buffer.size), buffer, timeout)

    def write_from(self, lba: int, buffer: Buffer, *, timeout: float = _TIMEOUT) -> None:
        """Write a whole buffer, without a copy."""
        self._transfer(commands.WRITE, lba, self._blocks_of(buffer.size), buffer, timeout)

    def read_many(
        self,
        lbas: Sequence[int],
        buffer: Buffer,
        *,
        blocks: int = 1,
        depth: int | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        """Read ``blocks`` blocks at each LBA in C, with ``depth`` commands in flight, by default the maximum.

        The data of the first LBA is at the buffer's start, that of the next LBA follows, and so on; after the
        end of the buffer it continues at the start. An ``array("Q")`` of LBAs is used without a copy.
        """
        self._run_many(commands.READ, lbas, buffer, blocks, depth, timeout)

    def write_many(
        self,
        lbas: Sequence[int],
        buffer: Buffer,
        *,
        blocks: int = 1,
        depth: int | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        """Write ``blocks`` blocks at each LBA, with the arguments of ``read_many()``."""
        self._run_many(commands.WRITE, lbas, buffer, blocks, depth, timeout)

    def flush(self, *, timeout: float = _TIMEOUT) -> None:
        """Make all completed writes durable."""
        self.pair.execute("flush", commands.flush(self.namespace.nsid), timeout)

    def submit_read(self, lba: int, blocks: int, iova: int) -> int:
        """Submit a read of up to ``max_blocks`` blocks to mapped memory; return its identifier."""
        self._require_blocks(lba, blocks, self.max_blocks)
        return self.pair.submit_op(commands.READ, lba, blocks, iova)

    def submit_write(self, lba: int, blocks: int, iova: int) -> int:
        """Submit a write of up to ``max_blocks`` blocks from mapped memory; return its identifier."""
        self._require_blocks(lba, blocks, self.max_blocks)
        return self.pair.submit_op(commands.WRITE, lba, blocks, iova)

    def poll(self, limit: int = 64, *, timeout: float = 0) -> list[Completion]:
        """Take completions of submitted commands, in the controller's order.

        At least one, and up to ``limit``; none if there is none within ``timeout``. Each has the identifier
        of its command, and its ``status``, which the caller must check.
        """
        return self.pair.poll(limit, timeout)

    def close(self) -> None:
        """Delete the queue in the controller: its commands complete or are aborted. Later calls do nothing.

        Raises:
            NvmeError: the controller did not delete the queue, and owns the memory of its commands until
                ``Nvme.stop()``.
        """
        if self._ended:
            return
        self.pair.close()
        with contextlib.suppress(ClosedError):  # the driver was stopped meanwhile
            self._delete(self)
        self.release()

    def release(self) -> None:
        """Free the memory of a queue that the controller no longer has."""
        with self._holding:
            self._ended = True
            self.pair.end()
            self._resources.close()

    def _transfer(self, opcode: int, lba: int, blocks: int, buffer: Buffer, timeout: float) -> None:
        self._require_blocks(lba, blocks, self.namespace.blocks)
        lbas = array("Q", range(lba, lba + blocks, self.max_blocks))
        step = self.max_blocks * self.namespace.block_size
        ops = make_ops(opcode, lbas, self.max_blocks, buffer.iova, step, len(lbas))
        ops[len(lbas) - 1].blocks = lba + blocks - lbas[-1]
        self.pair.run(f"{_NAMES[opcode]} of {blocks} blocks at {lba}", ops, self.depth, timeout)

    def _run_many(
        self,
        opcode: int,
        lbas: Sequence[int],
        buffer: Buffer,
        blocks: int,
        depth: int | None,
        timeout: float,
    ) -> None:
        if not len(lbas):
            return
        self._require_blocks(min(lbas), blocks, self.max_blocks)
        self._require_blocks(max(lbas), blocks, self.max_blocks)
        step = blocks * self.namespace.block_size
        if buffer.size < step or (depth is not None and depth < 1):
            raise UsageError("the buffer holds no blocks, or the depth is 0", hint="both must be at least 1")
        ops = make_ops(opcode, lbas, blocks, buffer.iova, step, buffer.size // step)
        self.pair.run(
            f"{_NAMES[opcode]} of {blocks} blocks", ops, min(depth or self.depth, self.depth), timeout
        )

    def _blocks_of(self, size: int) -> int:
        blocks, rest = divmod(size, self.namespace.block_size)
        if rest:
            raise UsageError(f"{size} bytes are not whole blocks of {self.namespace.block_size}")
        return blocks

    def _require_blocks(self, lba: int, blocks: int, most: int) -> None:
        if not 0 < blocks <= most or lba < 0 or lba + blocks > self.namespace.blocks:
            raise UsageError(
                f"{blocks} blocks at {lba} are invalid for a command of {self.pair.name}",
                hint=f"pass 1 to {most} blocks; the namespace has {self.namespace.blocks}",
            )

    @contextlib.contextmanager
    def _scratch(self, size: int) -> Iterator[Buffer]:
        """Lend memory. Memory that an unfinished command may still write to is not lent again."""
        buffer, self._spare = self._spare, None
        if buffer is None or buffer.size < size:
            with buffer or contextlib.nullcontext():
                pass
            buffer = self._dma.alloc(max(size, _SCRATCH))
            self._keep(buffer)
        try:
            yield buffer
        except (NvmeStatusError, UsageError):
            self._spare = buffer
            raise
        self._spare = buffer

    def _keep(self, buffer: Buffer) -> None:
        """Free memory with the queue, which may have ended meanwhile."""
        with self._holding:
            self._resources.enter_context(buffer)
            if self._ended:
                self._resources.close()

    def __enter__(self) -> IoQueue:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<IoQueue {self.pair.name}, {'closed' if self._ended else f'{self.pair.in_flight} in flight'}>"
        )
