"""A device's interrupts: their numbers, how they are enabled, and the eventfds that count them."""

from __future__ import annotations

import contextlib
import errno
import struct
import threading
from collections.abc import Iterator, Sequence
from ctypes import sizeof
from functools import cached_property
from types import TracebackType
from typing import overload

from vfiotool.errors import ClosedError, IrqError, KernelError, UnsupportedError
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.device_info import read_device_info, read_irq_info
from vfiotool.vfio.info import IrqInfo
from vfiotool.vfio.irqs.eventfd import EventFd
from vfiotool.vfio.uapi import DeviceInfoFlags, DeviceIoctl, IrqInfoFlags, IrqSetFlags, PciIrq, vfio_irq_set

_NAMES = {PciIrq.INTX: "INTx", PciIrq.MSIX: "MSI-X"}
_EXCLUSIVE = (PciIrq.INTX, PciIrq.MSI, PciIrq.MSIX)  # the kernel enables one of these at a time
_CLOSED = "enable it again"


class Vector(EventFd):
    """An enabled interrupt: each time the device raises it, or ``trigger()`` is called, counts once.

    See ``EventFd`` for its use with threads, ``select`` and asyncio.
    """

    _why_closed = _CLOSED
    _hint_if_silent = "enable the interrupt in the device and, for MSI and MSI-X, the device's bus mastering"

    def __init__(self, file: DeviceFile, info: IrqInfo, index: int) -> None:
        self._file = file
        self._info = info
        self.index = index
        super().__init__(file, f"{_name(info.index)} {index} of {file.name}")

    def trigger(self) -> None:
        """Raise the interrupt from software: the kernel signals the eventfd, without the device.

        Raises:
            ClosedError: the vector or its device was closed.
        """
        self._do(IrqSetFlags.ACTION_TRIGGER)

    def mask(self) -> None:
        """Mask an INTx in the kernel; an interrupt that is raised meanwhile arrives after ``unmask()``.

        Raises:
            UnsupportedError: the interrupt is not INTx; others can only be masked in the device.
            ClosedError: the vector or its device was closed.
        """
        self._require_maskable()
        self._do(IrqSetFlags.ACTION_MASK)

    def unmask(self) -> None:
        """Unmask INTx: the kernel masks it each time the device raises it.

        Make the device lower the interrupt first, otherwise it arrives again at once. Unmasking an interrupt
        that is not masked does nothing.

        Raises:
            UnsupportedError: the interrupt is not INTx.
            ClosedError: the vector or its device was closed.
        """
        self._require_maskable()
        self._do(IrqSetFlags.ACTION_UNMASK)

    def _do(self, action: IrqSetFlags) -> None:
        self.fileno()
        _set(self._file, self._info.index, IrqSetFlags.DATA_NONE | action, self.index, 1)

    def _require_maskable(self) -> None:
        if IrqInfoFlags.MASKABLE not in self._info.flags:
            raise UnsupportedError(
                f"the kernel cannot mask {self.name}",
                hint="the kernel masks only INTx; mask other interrupts in the device",
            )


class Vectors(Sequence[Vector]):
    """The enabled vectors of one kind, by number; a context manager that disables them.

    Threads may share it. It ends with its device.
    """

    def __init__(self, file: DeviceFile, info: IrqInfo, count: int, lock: threading.RLock) -> None:
        """Enable the first ``count`` vectors of an index. See ``Irq.enable``."""
        self._file = file
        self._info = info
        self._lock = lock
        self._closed = False
        self._vectors: tuple[Vector, ...] = ()
        self._add(count)

    @property
    def closed(self) -> bool:
        """Return True if the vectors were disabled, or their device closed."""
        return self._closed or self._file.closed

    def grow(self, count: int) -> tuple[Vector, ...]:
        """Enable more vectors, up to ``count`` in total, and return the new ones; the others stay enabled.

        Raises:
            UnsupportedError: the kernel can resize only MSI-X, since 6.5.
            IrqError: the device has fewer vectors, or more than ``count`` are enabled.
            KernelError: the kernel has no more vectors, or EMFILE: too many files are open. Nothing changed.
            ClosedError: the vectors were disabled, or their device closed.
        """
        with self._lock:
            self._require_open()
            name = _name(self._info.index)
            if IrqInfoFlags.NORESIZE in self._info.flags:
                raise UnsupportedError(
                    f"{name} of {self._file.name} cannot grow while enabled: the kernel reports NORESIZE",
                    hint="enable all vectors that you need at once; Linux 6.5 and later can grow MSI-X",
                )
            _require_count(self._file, self._info, count)
            if count < len(self._vectors):
                raise IrqError(
                    f"{name} of {self._file.name} has {len(self._vectors)} vectors enabled already",
                    hint=f"to have {count}, close the vectors and enable {count}",
                )
            return self._add(count - len(self._vectors))

    def rearm(self) -> None:
        """Disable the vectors and enable them again with the same eventfds, whose counts continue.

        Raises:
            KernelError: the kernel has fewer vectors now; all of them are closed then.
            ClosedError: the vectors were disabled, or their device closed.
        """
        with self._lock:
            self._require_open()
            try:
                _disable(self._file, self._info.index)
                _enable(self._file, self._info.index, self._vectors, 0)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Disable the vectors and close their eventfds; calls after the first do nothing.

        Raises:
            KernelError: the kernel did not disable the vectors; the eventfds are closed nevertheless.
        """
        try:
            if not self.closed:  # a closed device has no enabled vector, nor has a forked child
                self._disable()
        finally:
            for vector in self._vectors:
                vector.close()

    def _disable(self) -> None:
        with self._lock:
            if not self.closed:
                self._closed = True
                with contextlib.suppress(ClosedError):
                    _disable(self._file, self._info.index)

    def _add(self, count: int) -> tuple[Vector, ...]:
        start = len(self._vectors)
        with contextlib.ExitStack() as undo:
            made = tuple(
                undo.enter_context(Vector(self._file, self._info, index))
                for index in range(start, start + count)
            )
            if made:
                _enable(self._file, self._info.index, made, start)
            undo.pop_all()
        self._vectors += made
        return made

    def _require_open(self) -> None:
        self._file.fileno()
        if self._closed:
            raise ClosedError(f"{_name(self._info.index)} of {self._file.name} is disabled", hint=_CLOSED)

    @overload
    def __getitem__(self, index: int) -> Vector: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Vector, ...]: ...
    def __getitem__(self, index: int | slice) -> Vector | tuple[Vector, ...]:
        return self._vectors[index]

    def __len__(self) -> int:
        return len(self._vectors)

    def __iter__(self) -> Iterator[Vector]:
        return iter(self._vectors)

    def __enter__(self) -> Vectors:
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} of {self._info.count}"
        return f"<Vectors {_name(self._info.index)} of {self._file.name}, {state}>"


class Irq:
    """An interrupt index of a device, for example MSI. Threads may share it."""

    def __init__(
        self, file: DeviceFile, index: PciIrq, enabled: dict[PciIrq, Vectors], lock: threading.RLock
    ) -> None:
        """Describe an index; ``enabled``, under ``lock``, has the enabled vectors of all indexes."""
        self._file = file
        self._enabled = enabled
        self._lock = lock
        self.index = index

    @cached_property
    def info(self) -> IrqInfo:
        """The kernel's info on the index; its ``count`` is 0 if the device has no such interrupts.

        Raises:
            KernelError: EBADMSG for a malformed reply.
        """
        absent = IrqInfo(self.index, IrqInfoFlags(0), 0)
        device = read_device_info(self._file)
        # The indexes of a device that is not PCI have another meaning.
        if DeviceInfoFlags.PCI not in device.flags or self.index >= device.num_irqs:
            return absent
        try:
            info = read_irq_info(self._file, self.index)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            return absent
        return IrqInfo(self.index, info.flags, info.count)

    @property
    def count(self) -> int:
        """The number of vectors that the device has."""
        return self.info.count

    @property
    def enabled(self) -> bool:
        """Return True if the index is enabled now."""
        vectors = self._enabled.get(self.index)
        return vectors is not None and not vectors.closed

    def enable(self, count: int = 1) -> Vectors:
        """Enable the first ``count`` vectors, each with an eventfd; a failure leaves none of them enabled.

        Raises:
            UnsupportedError: the device has no such interrupts.
            IrqError: the device has fewer vectors, or this index or an excluded one is enabled: the kernel
                enables one of INTx, MSI and MSI-X at a time.
            KernelError: ENOSPC, the kernel has fewer vectors; EMFILE, too many files are open.
            ClosedError: the device was closed or released.
        """
        self._file.fileno()
        with self._lock:
            self._require_free()
            _require_count(self._file, self.info, count)
            vectors = Vectors(self._file, self.info, count, self._lock)
            self._enabled[self.index] = vectors
            return vectors

    def _require_free(self) -> None:
        name = _name(self.index)
        rivals = _EXCLUSIVE if self.index in _EXCLUSIVE else (self.index,)
        for index in rivals:
            vectors = self._enabled.get(index)
            if vectors is None or vectors.closed:
                continue
            if index == self.index:
                hint = "use the vectors of the earlier enable() call, or close them first"
                if index is PciIrq.REQ:
                    hint = "open the device with honour_requests=False to handle its requests yourself"
                raise IrqError(f"{name} of {self._file.name} is enabled already", hint=hint)
            raise IrqError(
                f"{_name(index)} of {self._file.name} is enabled, so {name} cannot be",
                hint=f"INTx, MSI and MSI-X exclude each other: close the vectors of {_name(index)} first",
            )


class Irqs:
    """All interrupts of an open device: ``intx``, ``msi``, ``msix``, ``err`` and ``req``."""

    def __init__(self, file: DeviceFile) -> None:
        self._enabled: dict[PciIrq, Vectors] = {}
        self._lock = threading.RLock()
        self.intx = Irq(file, PciIrq.INTX, self._enabled, self._lock)
        """The interrupt line: level-triggered, and masked by the kernel each time the device raises it."""
        self.msi = Irq(file, PciIrq.MSI, self._enabled, self._lock)
        self.msix = Irq(file, PciIrq.MSIX, self._enabled, self._lock)
        self.err = Irq(file, PciIrq.ERR, self._enabled, self._lock)
        """An uncorrectable error of a PCIe device (AER)."""
        self.req = Irq(file, PciIrq.REQ, self._enabled, self._lock)
        """The kernel's request to release the device."""

    def rearm(self) -> None:
        """Enable all enabled interrupts again, after a reset; the eventfds and their counts stay.

        Raises:
            KernelError, ClosedError: as for ``Vectors.rearm``.
        """
        with self._lock:
            for index in _EXCLUSIVE:  # ERR and REQ do not depend on the device's state
                vectors = self._enabled.get(index)
                if vectors is not None and not vectors.closed:
                    vectors.rearm()

    def close(self) -> None:
        """Disable all interrupts; calls after the first do nothing.

        Raises:
            KernelError: as for ``Vectors.close``.
        """
        with contextlib.ExitStack() as stack:
            for vectors in tuple(self._enabled.values()):
                stack.callback(vectors.close)


def _name(index: int) -> str:
    kind = PciIrq(index)
    return _NAMES.get(kind, kind.name)


def _require_count(file: DeviceFile, info: IrqInfo, count: int) -> None:
    name = _name(info.index)
    if not info.count:
        raise UnsupportedError(
            f"{file.name} has no {name}", hint="'vfiotool show' lists the interrupts of a device"
        )
    if not 1 <= count <= info.count:
        vectors = "vector" if info.count == 1 else "vectors"
        raise IrqError(
            f"{file.name} has {info.count} {vectors} of {name}, and {count} were requested",
            hint=f"enable 1 to {info.count}",
        )


def _enable(file: DeviceFile, index: int, vectors: Sequence[Vector], start: int) -> None:
    fds = struct.pack(f"={len(vectors)}i", *(vector.fileno() for vector in vectors))
    flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
    granted = _set(file, index, flags, start, len(vectors), fds)
    if granted > 0:  # the number that is available; none is enabled
        raise KernelError(
            errno.ENOSPC,
            DeviceIoctl.VFIO_DEVICE_SET_IRQS.name,
            f"{len(vectors)} vectors of {_name(index)} of {file.name}",
            hint=f"the kernel has only {granted}: enable at most {granted}",
        )


def _disable(file: DeviceFile, index: int) -> None:
    _set(file, index, IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER, 0, 0)


def _set(file: DeviceFile, index: int, flags: IrqSetFlags, start: int, count: int, data: bytes = b"") -> int:
    question = vfio_irq_set(sizeof(vfio_irq_set) + len(data), flags, index, start, count)
    return file.ioctl(DeviceIoctl.VFIO_DEVICE_SET_IRQS, bytearray(bytes(question) + data))
