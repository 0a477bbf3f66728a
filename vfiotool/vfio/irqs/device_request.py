"""Release of a device when the kernel requests it, because something unbinds or removes the device."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable

from vfiotool.errors import ClosedError
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.irqs.irqs import Irqs, Vector, Vectors

REASON = "the kernel requested it: something unbinds or removes the device"

_log = logging.getLogger(__name__)


class DeviceRequestHandler:
    """Waits in a daemon thread for the kernel's request (REQ), and then releases the device.

    The driver is called first, to stop DMA while the kernel waits. There is no thread for a device without
    REQ, for example one that is not PCI, and none in a forked child.
    """

    _vectors: Vectors | None = None
    _thread: threading.Thread | None = None

    def __init__(self, file: DeviceFile, irqs: Irqs, ask: Callable[[], None]) -> None:
        """Enable REQ, and start to wait; ``ask`` is a bound method, held weakly, that calls the driver.

        Raises:
            IrqError: REQ is enabled already.
            KernelError: as for ``Irq.enable``.
            ClosedError: the device was closed or released.
        """
        self._file = file
        self._ask = weakref.WeakMethod(ask)
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_asking = False
        if irqs.req.count:
            self._start(irqs.req.enable())

    @property
    def waiting(self) -> bool:
        """Return True if the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Stop waiting; calls after the first do nothing.

        The thread has ended afterwards, unless it is calling the driver.
        """
        with self._lock:
            self._is_closed = True
            is_asking = self._is_asking
        if self._vectors is not None:
            self._vectors.close()
        if self._thread is not None and not is_asking and self.waiting:
            self._thread.join()

    def _start(self, vectors: Vectors) -> None:
        # The thread holds no reference to this object or the device: both must be collectable if lost.
        arguments = (vectors[0], weakref.ref(self))
        self._vectors = vectors
        self._thread = threading.Thread(
            target=_serve, args=arguments, name=f"REQ of {self._file.name}", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:
            vectors.close()
            raise

    def _give_back(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_asking = True
        ask = self._ask()
        try:
            if ask is not None:
                ask()
        except BaseException:  # the device must be released after any error: the kernel waits
            _log.exception("%s: the driver failed when the kernel requested the device", self._file.name)
        finally:
            self._file.revoke(REASON)

    def __del__(self) -> None:
        if self._vectors is not None:
            self._vectors.close()


def _serve(vector: Vector, request: weakref.ref[DeviceRequestHandler]) -> None:
    with contextlib.suppress(ClosedError):
        vector.wait()
        asked = request()
        if asked is not None:
            asked._give_back()
