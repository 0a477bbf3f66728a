"""The admin queue: identify data, and creation of I/O queues (NVM Express Base Specification 2.0)."""

from __future__ import annotations

from vfiotool.drivers.nvme import commands
from vfiotool.drivers.nvme.controller import Controller
from vfiotool.drivers.nvme.errors import NvmeStatusError
from vfiotool.drivers.nvme.identify import SIZE, ControllerInfo, NamespaceInfo, parse_active
from vfiotool.drivers.nvme.queue_pair import QueuePair
from vfiotool.vfio.dma.mapping import Buffer

_TIMEOUT = 10.0


class AdminQueue:
    """Commands of the admin queue; each call waits for the completion of its command.

    All raise NvmeStatusError if the controller refuses a command, NvmeTimeoutError if it does not respond.
    """

    def __init__(self, controller: Controller, pair: QueuePair, page: Buffer) -> None:
        """Use a queue pair, and a page of memory for identify data."""
        self.controller = controller
        self.pair = pair
        self._page = page

    def identify(self) -> ControllerInfo:
        """Return the Identify data of the controller."""
        return ControllerInfo.parse(self._ask(commands.identify_controller(self._page.iova)))

    def namespace(self, nsid: int) -> NamespaceInfo:
        """Return the Identify data of a namespace.

        Raises:
            NvmeError: the namespace is not active, or its data are invalid.
        """
        return NamespaceInfo.parse(nsid, self._ask(commands.identify_namespace(nsid, self._page.iova)))

    def namespaces(self) -> list[int]:
        """Return the numbers of the active namespaces."""
        found: list[int] = []
        while True:
            above = found[-1] if found else 0
            page = self._ask(commands.identify_active_namespaces(above, self._page.iova))
            listed = parse_active(page, above)
            found += listed
            if len(listed) < SIZE // 4:
                return found

    def set_number_of_queues(self, wanted: int) -> int:
        """Request ``wanted`` queue pairs, and return how many the controller grants, more or fewer."""
        given = self.pair.execute("set features", commands.set_number_of_queues(wanted), _TIMEOUT)
        return min(given & 0xFFFF, given >> 16) + 1

    def create_queue(self, number: int, pair: QueuePair, vector: int | None) -> None:
        """Create the completion queue of a queue pair, and then its submission queue."""
        entries, submissions = pair.layout.entries, pair.memory.iova
        completions = submissions + pair.layout.completions
        create_completions = commands.create_completion_queue(number, entries, completions, vector)
        self.pair.execute("create completion queue", create_completions, _TIMEOUT)
        try:
            create_submissions = commands.create_submission_queue(number, entries, submissions)
            self.pair.execute("create submission queue", create_submissions, _TIMEOUT)
        except NvmeStatusError:
            self.pair.execute("delete completion queue", commands.delete_completion_queue(number), _TIMEOUT)
            raise

    def delete_queue(self, number: int) -> None:
        """Delete a queue pair; its commands are complete or aborted then."""
        self.pair.execute("delete submission queue", commands.delete_submission_queue(number), _TIMEOUT)
        self.pair.execute("delete completion queue", commands.delete_completion_queue(number), _TIMEOUT)

    def _ask(self, command: bytes) -> bytes:
        self.pair.execute("identify", command, _TIMEOUT)
        return self._page[:SIZE]
