"""A controller's registers put to use: reset, enable, shut down (NVM Express Base Specification 2.0)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vfiotool.drivers.nvme import commands
from vfiotool.drivers.nvme.errors import NvmeError
from vfiotool.drivers.nvme.queue_pair import QueuePair
from vfiotool.drivers.nvme.registers import NvmeRegisters, doorbells
from vfiotool.errors import UnsupportedError
from vfiotool.vfio.mmio.mmio import Mmio

_GONE = (1 << 64) - 1
_NVM = 1 << 0  # CAP.CSS
_NORMAL, _COMPLETE = 1, 2  # CC.SHN, CSTS.SHST
_SHUTDOWN_TIMEOUT = 5.0
_GLANCE = 0.001


class Controller:
    """What the registers of a mapped BAR0 say and do; ``name`` is the device's address.

    What is awaited and does not come is a RegisterTimeoutError.
    """

    def __init__(self, window: Mmio, name: str) -> None:
        """Read what the controller can do.

        Raises:
            NvmeError: it is gone.
            UnsupportedError: it is one that this driver does not know.
        """
        self.window = window
        self.name = name
        self.registers = NvmeRegisters(window, name=f"{name}: NVMe")
        if self.registers.cap.read() == _GONE:
            raise NvmeError(f"{name} does not answer: its registers read all ones", hint="is it powered?")
        cap = self.registers.cap.read_fields()
        if cap["mpsmin"] or not cap["css"] & _NVM:
            raise UnsupportedError(
                f"{name} takes no pages of 4 KiB, or has no NVM command set",
                hint="this driver knows no other controllers",
            )
        self.max_entries = cap["mqes"] + 1
        self._stride = cap["dstrd"]
        self._timeout = max(cap["to"], 1) * 0.5

    def doorbells(self, queue: int) -> tuple[int, int]:
        """Return where the doorbells of a queue pair are.

        Raises:
            NvmeError: they are outside of the BAR.
        """
        submission, completion = doorbells(queue, self._stride)
        if completion + 4 > self.window.size:
            raise NvmeError(f"{self.name} has no doorbells for queue {queue} in its BAR0")
        return submission, completion

    def disable(self) -> None:
        """Reset the controller: it ends all that it does, and forgets all queues (section 3.7.2)."""
        self.registers.cc.update(en=0, shn=0)
        self.registers.csts.wait_until(rdy=0, timeout=self._timeout)

    def enable(self, admin: QueuePair) -> None:
        """Have a controller that is disabled take commands from an admin queue (section 3.5.1)."""
        last = admin.layout.entries - 1
        self.registers.aqa.write(asqs=last, acqs=last)
        self.registers.asq.write(admin.memory.iova)
        self.registers.acq.write(admin.memory.iova + admin.layout.completions)
        self.registers.cc.write(en=1, iosqes=commands.SIZE_SHIFT, iocqes=commands.COMPLETION_SIZE_SHIFT)
        self.registers.csts.wait_until(rdy=1, timeout=self._timeout)

    def shut_down(self, pairs: Sequence[QueuePair]) -> None:
        """Have the controller complete what these closed queue pairs gave it, make it last, and reset it.

        What takes too long the reset aborts (section 3.6.1).
        """
        if self._is_well():
            self._await_completions(pairs)
            self.registers.cc.update(shn=_NORMAL)
            self.registers.csts.wait_until(shst=_COMPLETE, timeout=_SHUTDOWN_TIMEOUT)
        self.disable()

    def _is_well(self) -> bool:
        return bool(self.registers.cc.read_field("en")) and not self.registers.csts.read_field("cfs")

    def _await_completions(self, pairs: Sequence[QueuePair]) -> None:
        """Wait before a reset: QEMU 7.2 follows a freed queue where it ends a read only then, and dies."""
        end = time.monotonic() + _SHUTDOWN_TIMEOUT
        while any(pair.unanswered() for pair in pairs) and self._is_well() and time.monotonic() < end:
            time.sleep(_GLANCE)
