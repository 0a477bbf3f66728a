"""A queue pair in memory and its calls to the shim, for admin and I/O queues."""

from __future__ import annotations

import errno
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vfiotool._shim import ffi, lib
from vfiotool.drivers.nvme import commands
from vfiotool.drivers.nvme.commands import Completion
from vfiotool.drivers.nvme.errors import NvmeError, NvmeStatusError, NvmeTimeoutError
from vfiotool.errors import ClosedError, IrqTimeoutError, UsageError, VfioToolError
from vfiotool.vfio.dma.mapping import Buffer
from vfiotool.vfio.irqs.irqs import Vector
from vfiotool.vfio.mmio.mmio import Mmio

if TYPE_CHECKING:
    from vfiotool._shim import _NvmeCompletion, _NvmeJob, _NvmeOp, _NvmeQueue, _NvmeSlot

PAGE_SIZE = 4096
"""The controller's page size, the smallest possible: CC.MPS is 0."""

_CSTS, _CFS = 0x1C, 1 << 1
_SLICE = 0.1  # seconds in C or in a wait, after which signals and the controller's state are checked
_AT_ONCE = 64
_MOST_SECONDS = 30.0  # until the thread that has closed a queue has also ended it


@dataclass(frozen=True, slots=True)
class QueuePairLayout:
    """The memory of a queue pair: submission queue, completion queue, then a PRP list for each command."""

    entries: int
    list_entries: int = 0

    @property
    def completions(self) -> int:
        """The offset of the completion queue, on a page."""
        return _whole_pages(self.entries * commands.SIZE)

    @property
    def lists(self) -> int:
        """The offset of the PRP lists, on a page."""
        return self.completions + _whole_pages(self.entries * commands.COMPLETION_SIZE)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.lists + _whole_pages(self.entries * self.list_entries * 8)


class QueuePair:
    """A queue pair, for one thread at a time. Any thread may ``close()`` it: the user then gets ClosedError.

    All of its calls raise NvmeError if the controller has failed, is gone, or completes a command that it was
    not given.
    """

    def __init__(
        self,
        name: str,
        memory: Buffer,
        layout: QueuePairLayout,
        registers: Mmio,
        doorbells: tuple[int, int],
        *,
        nsid: int = 0,
        block_size: int = 1,
        vector: Vector | None = None,
    ) -> None:
        """Set the queue pair up in zeroed memory. With a vector, completions are awaited by interrupt."""
        self.name = name
        self.layout = layout
        self.memory = memory
        self._registers = registers
        self._vector = vector
        self._slots = cast("list[_NvmeSlot]", ffi.new("struct vt_nvme_slot[]", layout.entries))
        self._done = cast("list[_NvmeCompletion]", ffi.new("struct vt_nvme_completion[]", _AT_ONCE))
        self._kept: deque[Completion] = deque()  # completions that were taken while another was awaited
        self._late: set[int] = set()  # commands whose callers no longer wait
        # Held during calls to C and while another thread looks; reentrant for signal handlers.
        self._using = threading.RLock()
        self._ended = threading.Event()
        self._queue = queue = cast("_NvmeQueue", ffi.new("struct vt_nvme_queue *"))
        queue.registers = registers.window
        queue.sq_doorbell, queue.cq_doorbell = doorbells
        queue.sq, queue.cq = memory.address, memory.address + layout.completions
        queue.lists, queue.lists_iova = memory.address + layout.lists, memory.iova + layout.lists
        queue.slots, queue.entries, queue.list_entries = self._slots, layout.entries, layout.list_entries
        queue.page_size, queue.nsid, queue.block_shift = PAGE_SIZE, nsid, block_size.bit_length() - 1
        queue.interrupts = vector is not None
        if lib.vt_nvme_queue_init(queue):
            raise UsageError(f"{name} cannot have {layout.entries} entries", hint="use 2 to 32768 entries")

    @property
    def in_flight(self) -> int:
        """How many commands the controller has."""
        return self._queue.in_flight

    def unanswered(self) -> int:
        """Count the commands that the controller has not completed, from any thread, after ``close()``."""
        with self._using:
            return 0 if self._ended.is_set() else lib.vt_nvme_unanswered(self._queue)

    def close(self) -> None:
        """Stop submitting and taking completions, from any thread; the caller notifies the controller.

        A running call of another thread waits for ``end()``: the memory that it gave to the controller may be
        freed once it has returned.
        """
        self._queue.closed = 1

    def end(self) -> None:
        """Let running calls return, now that the controller no longer uses this queue pair."""
        self.close()
        with self._using:
            self._ended.set()

    def submit(self, command: bytes) -> int:
        """Submit a command, and return the identifier that its completion will have.

        Raises:
            UsageError: the queue is full.
        """
        with self._using:
            result = lib.vt_nvme_submit(self._queue, command)
        return self._checked(result)

    def submit_op(self, opcode: int, lba: int, blocks: int, iova: int) -> int:
        """Submit a read or a write, like ``submit()`` for a command.

        Raises:
            UsageError: the queue is full, or the memory misaligned, or too large for a command.
        """
        cid = cast("list[int]", ffi.new("uint16_t[1]"))
        ops = make_ops(opcode, [lba], blocks, iova)
        with self._using:
            result = lib.vt_nvme_submit_ops(self._queue, ops, 1, cid)
        if not self._checked(result):
            raise self._failed(-errno.ENOSPC)
        return cid[0]

    def poll(self, limit: int, timeout: float) -> list[Completion]:
        """Take up to ``limit`` completions: at least one, if there is one within ``timeout`` seconds."""
        kept = [self._kept.popleft() for _ in range(min(limit, len(self._kept)))]
        return kept or self._take(limit, timeout)

    def execute(self, what: str, command: bytes, timeout: float) -> int:
        """Submit a command, wait for it, and return dword 0 of its completion.

        Raises:
            NvmeStatusError: the command failed.
            NvmeTimeoutError: the command did not complete in time.
            UsageError: the queue is full.
        """
        cid = self.submit(command)
        try:
            done = self._take_one(cid, timeout)
        except BaseException:
            self._late.add(cid)
            raise
        if done is None:
            self._late.add(cid)
            raise self._timed_out(what, timeout)
        if done.status:
            raise NvmeStatusError(what, done.status)
        return done.result

    def run(self, what: str, ops: list[_NvmeOp], depth: int, timeout: float) -> None:
        """Execute ops, ``depth`` at a time; ``timeout`` is the longest time in which none completes.

        Raises:
            NvmeStatusError: some ops failed; all were executed.
            NvmeTimeoutError: none completed in that time.
            UsageError: the queue has other commands, or memory is misaligned, or too large for a command.
        """
        self._require_idle()
        job = cast("_NvmeJob", ffi.new("struct vt_nvme_job *"))
        job.ops, job.count, job.depth = ops, len(ops), depth
        try:
            self._finish(job, what, timeout)
        except BaseException:
            self._late.update(cid for cid in range(self.layout.entries - 1) if self._slots[cid].in_use)
            raise
        if job.failed:
            index = next(at for at in range(len(ops)) if ops[at].status)
            raise NvmeStatusError(what, ops[index].status, index=index, failed=job.failed)

    def _finish(self, job: _NvmeJob, what: str, timeout: float) -> None:
        completed, end = 0, time.monotonic() + timeout
        while (result := self._run_for_a_while(job, end)) == -errno.ETIMEDOUT:
            if job.completed != completed:
                completed, end = job.completed, time.monotonic() + timeout
            elif time.monotonic() >= end:
                raise self._timed_out(f"{what}: {job.count - completed} of {job.count} commands", timeout)
            self._pause(end)
        self._checked(result)

    def _run_for_a_while(self, job: _NvmeJob, end: float) -> int:
        with self._using:
            return lib.vt_nvme_run(self._queue, job, self._slice(end))

    def _require_idle(self) -> None:
        if self.in_flight:
            self._kept += self._take(_AT_ONCE, 0)
        if self.in_flight:
            hint = "poll() them first; commands that timed out end when the queue is closed"
            raise UsageError(f"{self.name} has {self.in_flight} commands already", hint=hint)

    def _take_one(self, cid: int, timeout: float) -> Completion | None:
        end = time.monotonic() + timeout
        while taken := self._take(1, max(end - time.monotonic(), 0)):
            if taken[0].cid == cid:
                return taken[0]
            self._kept += taken
        return None

    def _take(self, limit: int, timeout: float) -> list[Completion]:
        """Take completions that a caller still awaits."""
        end = time.monotonic() + timeout
        while True:
            until = self._slice(end) if timeout else 0
            with self._using:
                count = lib.vt_nvme_poll(self._queue, self._done, min(limit, _AT_ONCE), until)
            taken = [self._completion(at) for at in range(self._checked(count))]
            if found := [one for one in taken if not self._is_late(one.cid)]:
                return found
            if not count:
                if time.monotonic() >= end:
                    return []
                self._pause(end)

    def _completion(self, at: int) -> Completion:
        done = self._done[at]
        return Completion(done.cid, done.status, done.result)

    def _is_late(self, cid: int) -> bool:
        if cid not in self._late:
            return False
        self._late.remove(cid)
        return True

    def _slice(self, end: float) -> int:
        """Return until when C may poll, in nanoseconds."""
        return int(min(end, time.monotonic() + _SLICE) * 1e9)

    def _pause(self, end: float) -> None:
        """Wait for an interrupt, if there are any; without one, check the controller's state."""
        if self._vector is not None:
            try:
                self._vector.wait(max(min(end - time.monotonic(), _SLICE), 0))
                return
            except IrqTimeoutError:
                pass
        if self._registers.read32(_CSTS) & _CFS:  # a controller that is gone reads all ones
            raise NvmeError(
                f"{self.name}: the controller has failed (CSTS.CFS), or is gone",
                hint="stop its driver and start it again, which resets it",
            )

    def _checked(self, result: int) -> int:
        if result < 0:
            raise self._failed(result)
        return result

    def _failed(self, code: int) -> VfioToolError:
        if code == -errno.ECANCELED:
            self._ended.wait(_MOST_SECONDS)
            hint = "create another queue; after stop(), start the driver again first"
            return ClosedError(f"{self.name} is closed", hint=hint)
        if code == -errno.ENOSPC:
            return UsageError(
                f"{self.name} is full, with {self.in_flight} commands", hint="poll() some first"
            )
        if code == -errno.EINVAL:
            hint = "memory must start at a multiple of 4, and a command has at most max_blocks"
            return UsageError(f"{self.name} cannot take an invalid command", hint=hint)
        if code == -errno.EBADMSG:
            hint = "stop its driver and start it again, which resets it"
            return NvmeError(f"{self.name}: a command completed that was not submitted", hint=hint)
        self._registers.read32(_CSTS)  # raises the error that explains why doorbells cannot be reached
        return NvmeError(f"{self.name}: {os.strerror(-code)}")

    def _timed_out(self, what: str, timeout: float) -> NvmeTimeoutError:
        hint = "close the queue or stop the driver: until then the controller owns the commands' memory"
        return NvmeTimeoutError(f"{self.name}: {what} did not complete within {timeout:g} s", hint=hint)


def make_ops(
    opcode: int, lbas: Sequence[int], blocks: int, iova: int, step: int = 0, places: int = 1
) -> list[_NvmeOp]:
    """Make reads or writes whose data alternate between ``places`` pieces of memory, ``step`` bytes apart."""
    numbers = lbas if isinstance(lbas, array) and lbas.typecode == "Q" else array("Q", lbas)
    ops = cast("list[_NvmeOp]", ffi.new("struct vt_nvme_op[]", len(numbers)))
    pointer = ffi.from_buffer("uint64_t[]", numbers)
    lib.vt_nvme_fill_ops(ops, pointer, len(numbers), opcode, blocks, iova, step, places)
    return ops


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE
