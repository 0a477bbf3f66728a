"""Reset, enabling and shutdown of a controller (NVM Express Base Specification 2.0)."""

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
    """The controller behind a mapped BAR0; ``name`` is the device's address.

    A state that is not reached in time is a RegisterTimeoutError.
    """

    def __init__(self, window: Mmio, name: str) -> None:
        """Read the controller's capabilities.

        Raises:
            NvmeError: the controller is gone.
            UnsupportedError: this driver does not support the controller.
        """
        self.window = window
        self.name = name
        self.registers = NvmeRegisters(window, name=f"{name}: NVMe")
        if self.registers.cap.read() == _GONE:
            raise NvmeError(f"{name} does not respond: its registers read all ones", hint="check its power")
        cap = self.registers.cap.read_fields()
        if cap["mpsmin"] or not cap["css"] & _NVM:
            raise UnsupportedError(
                f"{name} does not support pages of 4 KiB, or has no NVM command set",
                hint="this driver needs both",
            )
        self.max_entries = cap["mqes"] + 1
        self._stride = cap["dstrd"]
        self._timeout = max(cap["to"], 1) * 0.5

    def doorbells(self, queue: int) -> tuple[int, int]:
        """Return the offsets of the doorbells of a queue pair.

        Raises:
            NvmeError: they are outside of the BAR.
        """
        submission, completion = doorbells(queue, self._stride)
        if completion + 4 > self.window.size:
            raise NvmeError(f"{self.name} has no doorbells for queue {queue} in its BAR0")
        return submission, completion

    def disable(self) -> None:
        """Reset the controller: it ends all its operations, and forgets all queues (section 3.7.2)."""
        self.registers.cc.update(en=0, shn=0)
        self.registers.csts.wait_until(rdy=0, timeout=self._timeout)

    def enable(self, admin: QueuePair) -> None:
        """Enable a disabled controller with an admin queue (section 3.5.1)."""
        last = admin.layout.entries - 1
        self.registers.aqa.write(asqs=last, acqs=last)
        self.registers.asq.write(admin.memory.iova)
        self.registers.acq.write(admin.memory.iova + admin.layout.completions)
        self.registers.cc.write(en=1, iosqes=commands.SIZE_SHIFT, iocqes=commands.COMPLETION_SIZE_SHIFT)
        self.registers.csts.wait_until(rdy=1, timeout=self._timeout)

    def shut_down(self, pairs: Sequence[QueuePair]) -> None:
        """Wait for the commands of these closed queue pairs, shut the controller down, and reset it.

        The shutdown makes all writes durable. The reset aborts commands that take too long (section 3.6.1).
        """
        if self._is_well():
            self._await_completions(pairs)
            self.registers.cc.update(shn=_NORMAL)
            self.registers.csts.wait_until(shst=_COMPLETE, timeout=_SHUTDOWN_TIMEOUT)
        self.disable()

    def _is_well(self) -> bool:
        return bool(self.registers.cc.read_field("en")) and not self.registers.csts.read_field("cfs")

    def _await_completions(self, pairs: Sequence[QueuePair]) -> None:
        """Wait before the reset: QEMU 7.2 uses a freed queue and crashes if a read ends after the reset."""
        end = time.monotonic() + _SHUTDOWN_TIMEOUT
        while any(pair.unanswered() for pair in pairs) and self._is_well() and time.monotonic() < end:
            time.sleep(_GLANCE)
