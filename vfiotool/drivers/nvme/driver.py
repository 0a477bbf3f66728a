"""The NVMe driver."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vfiotool.drivers.base import Driver
from vfiotool.drivers.nvme.admin_queue import AdminQueue
from vfiotool.drivers.nvme.controller import Controller
from vfiotool.drivers.nvme.errors import NvmeError, NvmeStatusError
from vfiotool.drivers.nvme.identify import SIZE, ControllerInfo, NamespaceInfo
from vfiotool.drivers.nvme.io_queue import IoQueue
from vfiotool.drivers.nvme.queue_pair import PAGE_SIZE, QueuePair, QueuePairLayout
from vfiotool.errors import ClosedError, RegisterTimeoutError, UnsupportedError
from vfiotool.vfio.device import Device
from vfiotool.vfio.irqs.irqs import Vector

_ADMIN = QueuePairLayout(32)
_WANTED_QUEUES = 64
_LIST_SHIFT = 9  # log2 of the entries of a command's PRP list, which is one page
_MAX_BLOCKS = 1 << 16  # a command has 16 bits for the number of blocks


class Nvme(Driver):
    """A driver of an NVMe controller; see ``Driver`` for the guarantees of its calls.

        with Nvme(device) as nvme, nvme.create_queue() as queue:
            queue.write(0, b"hello".ljust(queue.namespace.block_size))
            assert queue.read(0).startswith(b"hello")

    ``start()`` resets the controller. ``stop()`` waits for its commands and shuts it down, so that all writes
    are durable. One thread at a time may call methods, create queues and close them; each queue may have
    a thread of its own.

    All methods raise NvmeStatusError if the controller refuses a command, NvmeTimeoutError if it does not
    respond, and ClosedError if the driver is not started.
    """

    info: ControllerInfo
    """The controller's identify data; set by the first start."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._queues: dict[int, IoQueue] = {}
        self._controller: Controller | None = None
        self._admin_queue: AdminQueue | None = None
        self._given = 0  # how many I/O queues the controller grants

    def namespaces(self) -> list[int]:
        """Return the numbers of the active namespaces."""
        return self._admin.namespaces()

    def namespace(self, nsid: int = 1) -> NamespaceInfo:
        """Return the identify data of a namespace.

        Raises:
            NvmeError: the namespace is not active, or its data are invalid.
        """
        return self._admin.namespace(nsid)

    def create_queue(self, nsid: int = 1, *, entries: int = 256, vector: Vector | None = None) -> IoQueue:
        """Create a queue for a namespace, with ``entries`` entries, or as many as the controller supports.

        A vector of ``device.irqs.msix`` makes the queue wait for completions by interrupt, otherwise it
        polls.

        Raises:
            UnsupportedError: the namespace has metadata, or blocks that are larger than a command may be.
            NvmeError: the namespace is not active, or the controller has no more queues.
        """
        admin = self._admin
        queue = self._new_queue(admin.namespace(nsid), entries, vector)
        self._queues[queue.number] = queue  # from now on the controller owns its memory
        if self._admin_queue is not admin:  # stopped meanwhile: the controller has no such queue
            self._queues.pop(queue.number, None)
            queue.release()
        try:
            admin.create_queue(queue.number, queue.pair, None if vector is None else vector.index)
        except NvmeStatusError:
            self._queues.pop(queue.number).release()
            raise
        return queue

    def _start(self, resources: ExitStack) -> None:
        window = resources.enter_context(self.device.regions.bar0.map())
        controller = self._controller = Controller(window, self.device.name)
        controller.disable()
        memory = resources.enter_context(self.device.dma.alloc(_ADMIN.size))
        page = resources.enter_context(self.device.dma.alloc(SIZE))
        resources.callback(self._forget_queues)
        name = f"admin queue of {self.device.name}"
        pair = QueuePair(name, memory, _ADMIN, window, controller.doorbells(0))
        admin = self._admin_queue = AdminQueue(controller, pair, page)
        self.device.bus_master = True
        controller.enable(admin.pair)
        self.info = admin.identify()
        self._given = admin.set_number_of_queues(_WANTED_QUEUES)

    def _quiesce(self) -> None:
        admin, self._admin_queue = self._admin_queue, None
        pairs = [queue.pair for queue in self._queues.values()]
        closing = [*pairs, admin.pair] if admin else pairs
        for pair in closing:
            pair.close()
        try:
            self._end_all_commands(pairs)
        finally:
            for pair in closing:
                pair.end()

    def _end_all_commands(self, pairs: Sequence[QueuePair]) -> None:
        controller, self._controller = self._controller, None
        if controller is None:
            return
        try:
            controller.shut_down(pairs)
        except RegisterTimeoutError:
            self.device.reset()

    def _forget_queues(self) -> None:
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            queue.release()

    def _delete_queue(self, queue: IoQueue) -> None:
        self._admin.delete_queue(queue.number)
        del self._queues[queue.number]

    def _new_queue(self, namespace: NamespaceInfo, entries: int, vector: Vector | None) -> IoQueue:
        """Make a queue that the controller does not have yet."""
        controller, number = self._admin.controller, self._free_number()
        max_transfer = PAGE_SIZE << min(self.info.max_transfer_shift or _LIST_SHIFT, _LIST_SHIFT)
        max_blocks = min(max_transfer // namespace.block_size, _MAX_BLOCKS)
        if namespace.metadata_size or not max_blocks:
            raise UnsupportedError(
                f"this driver cannot use the format of namespace {namespace.nsid} of {self.device.name}",
                hint="format it without metadata, or with smaller blocks",
            )
        layout = QueuePairLayout(min(entries, controller.max_entries), max_transfer // PAGE_SIZE)
        with ExitStack() as undo:
            pair = QueuePair(
                f"queue {number} of {self.device.name}",
                undo.enter_context(self.device.dma.alloc(layout.size)),
                layout,
                controller.window,
                controller.doorbells(number),
                nsid=namespace.nsid,
                block_size=namespace.block_size,
                vector=vector,
            )
            undo.pop_all()
        return IoQueue(number, pair, namespace, max_blocks, self.device.dma, self._delete_queue)

    def _free_number(self) -> int:
        for number in range(1, self._given + 1):
            if number not in self._queues:
                return number
        raise NvmeError(f"{self.device.name} has no more than {self._given} queues", hint="close one first")

    @property
    def _admin(self) -> AdminQueue:
        if self._admin_queue is None:
            raise ClosedError(f"the driver of {self.device.name} is not started", hint="call start() first")
        return self._admin_queue
