"""Giving a device back when the kernel asks for it, because something unbinds or removes it."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable

from vfiotool.errors import ClosedError
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.irqs.irqs import Irqs, Vector, Vectors

REASON = "the kernel asked for it: something unbinds or removes the device"

_log = logging.getLogger(__name__)


class DeviceRequestHandler:
    """Waits, in a daemon thread, for the kernel's request (REQ), and then gives the device back.

    The driver is asked first: it may stop DMA, while the kernel waits. A device that has no REQ, as
    one that is not PCI, has no thread. Neither has a forked child.
    """

    _vectors: Vectors | None = None
    _thread: threading.Thread | None = None

    def __init__(self, file: DeviceFile, irqs: Irqs, ask: Callable[[], None]) -> None:
        """Enable REQ, and start to wait; ``ask`` is a bound method, held weakly, that tells the driver.

        Raises:
            IrqError: REQ is enabled already.
            KernelError: as for ``Irq.enable``.
            ClosedError: the device was closed or given back.
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
        """Say whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Wait no longer; calls after the first do nothing. The thread has ended then, unless the driver is
        being asked in it.
        """
        with self._lock:
            self._is_closed = True
            is_asking = self._is_asking
        if self._vectors is not None:
            self._vectors.close()
        if self._thread is not None and not is_asking and self.waiting:
            self._thread.join()

    def _start(self, vectors: Vectors) -> None:
        # The thread holds neither this nor the device: one that is lost must still be found to be so.
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
        except BaseException:  # whatever it is, the kernel waits
            _log.exception("%s: the driver failed when it was asked to let go", self._file.name)
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
