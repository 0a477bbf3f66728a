"""The interrupts of a fake device: VFIO_DEVICE_SET_IRQS as in vfio-pci, with real eventfds.

Source: Linux drivers/vfio/pci/vfio_pci_intrs.c, and vfio_set_irqs_validate_and_prepare() of vfio_main.c.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Mapping
from ctypes import sizeof

from vfiotool.vfio.uapi import IrqInfoFlags, IrqSetFlags, PciIrq, vfio_irq_set

_DATA = IrqSetFlags.DATA_NONE | IrqSetFlags.DATA_BOOL | IrqSetFlags.DATA_EVENTFD
_ACTION = IrqSetFlags.ACTION_MASK | IrqSetFlags.ACTION_UNMASK | IrqSetFlags.ACTION_TRIGGER
_ITEM = {IrqSetFlags.DATA_NONE: 0, IrqSetFlags.DATA_BOOL: 1, IrqSetFlags.DATA_EVENTFD: 4}
_EXCLUSIVE = (PciIrq.INTX, PciIrq.MSI, PciIrq.MSIX)
_MESSAGES = (PciIrq.MSI, PciIrq.MSIX)
_NO_FD = -1


class FakeIrqs:
    """The interrupts that are enabled, and the state of INTx. Threads may share it.

    Errors are OSErrors with the kernel's errno; the fake file turns them into KernelErrors.
    """

    def __init__(self, counts: Mapping[PciIrq, int], can_send: Callable[[], bool]) -> None:
        """Take the number of vectors by kind; ``can_send`` returns True if messages can leave the device."""
        self._counts = {PciIrq.REQ: 1, **counts}
        self._can_send = can_send
        self._fds: dict[tuple[PciIrq, int], int] = {}
        self._lock = threading.Lock()
        self._asserted = False
        self._masked = False

    @property
    def enabled(self) -> PciIrq | None:
        """The kind that is enabled: INTx, MSI, MSI-X or None."""
        return next((index for index, _vector in self._fds if index in _EXCLUSIVE), None)

    def info(self, number: int) -> tuple[IrqInfoFlags, int]:
        """Return flags and number of vectors of an index.

        Raises:
            OSError: EINVAL, the device has no such index.
        """
        index = self._index(number)
        flags = IrqInfoFlags.EVENTFD
        if index is PciIrq.INTX:
            flags |= IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED
        elif index is not PciIrq.MSIX:
            flags |= IrqInfoFlags.NORESIZE
        return flags, self._counts.get(index, 0)

    def set(self, data: bytes) -> None:
        """Execute VFIO_DEVICE_SET_IRQS.

        Raises:
            OSError: with the errno of vfio-pci.
        """
        question = vfio_irq_set.from_buffer_copy(data)
        index = self._index(question.index)
        kind, action = IrqSetFlags(question.flags) & _DATA, IrqSetFlags(question.flags) & _ACTION
        if kind not in _ITEM or action.bit_count() != 1 or question.flags & ~int(_DATA | _ACTION):
            raise OSError(errno.EINVAL, "flags")
        if (
            question.start >= self._counts.get(index, 0)
            or question.start + question.count > self._counts[index]
        ):
            raise OSError(errno.EINVAL, "range")
        items = data[sizeof(vfio_irq_set) :]
        if len(items) < question.count * _ITEM[kind]:
            raise OSError(errno.EINVAL, "argsz")
        with self._lock:
            if action is IrqSetFlags.ACTION_TRIGGER:
                self._trigger(index, kind, question.start, question.count, items)
            else:
                self._mask(index, question, action is IrqSetFlags.ACTION_MASK)

    def send(self, index: PciIrq, vector: int) -> None:
        """Signal a vector of MSI or MSI-X; without effect if the vector is not enabled."""
        with self._lock:
            fd = self._fds.get((index, vector))
            if fd is not None and self._can_send():
                os.eventfd_write(fd, 1)

    def set_line(self, asserted: bool) -> None:
        """Assert or deassert INTx."""
        with self._lock:
            self._asserted = asserted
            self._deliver_line()

    def request(self) -> None:
        """Signal the request interrupt: the kernel wants the device back."""
        with self._lock:
            fd = self._fds.get((PciIrq.REQ, 0))
            if fd is not None:
                os.eventfd_write(fd, 1)

    def close(self) -> None:
        """Disable all interrupts."""
        with self._lock:
            for index in PciIrq:
                self._disable(index)

    def _index(self, number: int) -> PciIrq:
        if number not in PciIrq.__members__.values() or (
            number == PciIrq.ERR and PciIrq.ERR not in self._counts
        ):
            raise OSError(errno.EINVAL, "index")
        return PciIrq(number)

    def _trigger(self, index: PciIrq, kind: IrqSetFlags, start: int, count: int, items: bytes) -> None:
        is_enabled = any(one == index for one, _vector in self._fds)
        if kind is IrqSetFlags.DATA_NONE and not count:
            self._disable(index)
            return
        if index in _EXCLUSIVE and self.enabled not in (None, index):
            raise OSError(errno.EINVAL, "another kind is enabled")
        vectors = range(start, start + count)
        if kind is IrqSetFlags.DATA_EVENTFD:
            self._connect(index, start, struct.unpack_from(f"={count}i", items))
        elif not is_enabled:
            raise OSError(errno.EINVAL, "not enabled")
        for at, vector in enumerate(vectors if kind is not IrqSetFlags.DATA_EVENTFD else ()):
            fd = self._fds.get((index, vector))
            if fd is not None and (kind is IrqSetFlags.DATA_NONE or items[at]):
                os.eventfd_write(fd, 1)

    def _connect(self, index: PciIrq, start: int, fds: tuple[int, ...]) -> None:
        """Signal these eventfds from now on, all or none. Like the kernel, hold an own reference to each."""
        made: dict[tuple[PciIrq, int], int] = {}
        try:
            for vector, fd in enumerate(fds, start):
                if fd != _NO_FD:
                    made[index, vector] = _own_eventfd(fd)
        except OSError:
            for fd in made.values():
                os.close(fd)
            raise
        for vector in range(start, start + len(fds)):
            self._drop(index, vector)
        self._fds.update(made)
        if index is PciIrq.INTX:
            self._masked = False
            self._deliver_line()

    def _mask(self, index: PciIrq, question: vfio_irq_set, masked: bool) -> None:
        if index is not PciIrq.INTX:
            raise OSError(errno.ENOTTY, "only INTx can be masked")
        if self.enabled is not PciIrq.INTX or question.count != 1:
            raise OSError(errno.EINVAL, "not enabled")
        self._masked = masked
        self._deliver_line()

    def _deliver_line(self) -> None:
        fd = self._fds.get((PciIrq.INTX, 0))
        if fd is not None and self._asserted and not self._masked:
            self._masked = True
            os.eventfd_write(fd, 1)

    def _disable(self, index: PciIrq) -> None:
        for one, vector in tuple(self._fds):
            if one == index:
                self._drop(one, vector)

    def _drop(self, index: PciIrq, vector: int) -> None:
        fd = self._fds.pop((index, vector), None)
        if fd is not None:
            os.close(fd)


def _own_eventfd(fd: int) -> int:
    """Return a duplicate of an eventfd; fail with EBADF or EINVAL as ``eventfd_ctx_fdget()`` does."""
    own = os.dup(fd)
    if os.readlink(f"/proc/self/fd/{own}") != "anon_inode:[eventfd]":
        os.close(own)
        raise OSError(errno.EINVAL, "no eventfd")
    return own
