"""What a device offers beside regions and interrupts: VFIO_DEVICE_FEATURE."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import threading
import uuid
from types import TracebackType
from typing import Literal, TypeVar, overload

from vfiotool.errors import ClosedError, KernelError, UnsupportedError
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.irqs.eventfd import EventFd
from vfiotool.vfio.uapi import (
    DeviceFeature,
    DeviceFeatureFlags,
    DeviceIoctl,
    vfio_device_feature,
    vfio_device_low_power_entry_with_wakeup,
)

L = TypeVar("L", bound="LowPower")

_REQUEST = DeviceIoctl.VFIO_DEVICE_FEATURE

# What a device may lack, and the first kernel that had it.
_SINCE = {
    DeviceFeature.PCI_VF_TOKEN: ("VF token", "5.7; only a PF on vfio-pci has one for its VFs"),
    DeviceFeature.LOW_POWER_ENTRY: ("low power", "6.1"),
    DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP: ("low power with wakeup", "6.1"),
    DeviceFeature.LOW_POWER_EXIT: ("low power", "6.1"),
}


class LowPower:
    """A device that sleeps; a context manager that wakes it. Threads may share it.

    Meanwhile its mapped registers are out of reach: they raise AccessError. System calls, as reads of
    its configuration space, wake it for their own time. See ``vfio_pci_core_pm_entry`` in the kernel.
    """

    def __init__(self, file: DeviceFile) -> None:
        """Let the device sleep. See ``Features.low_power``."""
        self._file = file
        self.closed = False
        file.set_asleep(True)
        try:
            self._enter()
        except BaseException:
            with contextlib.suppress(ClosedError):
                file.set_asleep(False)
            raise

    def close(self) -> None:
        """Wake the device; calls after the first do nothing, and so they do once it is given back.

        Raises:
            KernelError: it does not wake, and its registers stay out of reach.
        """
        if self.closed:
            return
        with contextlib.suppress(ClosedError):
            _set(self._file, DeviceFeature.LOW_POWER_EXIT)
            self._file.set_asleep(False)
        self.closed = True

    def _enter(self) -> None:
        _set(self._file, DeviceFeature.LOW_POWER_ENTRY)

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class WakeableLowPower(LowPower):
    """A device that sleeps until something wakes it, which ``wakeup`` then tells: a PME, or any system call.

    Once woken it stays so; its mapped registers are out of reach until ``close()`` nevertheless.
    """

    def __init__(self, file: DeviceFile) -> None:
        self.wakeup = EventFd(file, f"wakeup of {file.name}")
        try:
            super().__init__(file)
        except BaseException:
            self.wakeup.close()
            raise

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.wakeup.close()

    def _enter(self) -> None:
        data = vfio_device_low_power_entry_with_wakeup(wakeup_eventfd=self.wakeup.fileno())
        _set(self._file, DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP, bytes(data))


class Features:
    """The features of an open device. Threads may share it."""

    def __init__(self, file: DeviceFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._sleeping: LowPower | None = None

    def probe(self, feature: DeviceFeature) -> DeviceFeatureFlags:
        """Return whether a feature can be got (GET), set (SET), both, or neither: it is not there.

        Raises:
            KernelError: the kernel's errno, where that is none of those which say so.
        """
        found = DeviceFeatureFlags(0)
        for way in (DeviceFeatureFlags.GET, DeviceFeatureFlags.SET):
            try:
                _ask(self._file, feature, DeviceFeatureFlags.PROBE | way)
            except KernelError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
            else:
                found |= way
        return found

    def set_vf_token(self, token: uuid.UUID) -> None:
        """Set the secret that whoever opens a VF of this PF must show; every call replaces it.

        The kernel makes up one that no one knows when the PF comes to its driver, so its VFs open
        only after this. Who opens the PF while a VF is open must show it too.

        Raises:
            UnsupportedError: the device is not a PF.
        """
        _set(self._file, DeviceFeature.PCI_VF_TOKEN, token.bytes)

    @overload
    def low_power(self, *, wakeup: Literal[False] = ...) -> LowPower: ...
    @overload
    def low_power(self, *, wakeup: Literal[True]) -> WakeableLowPower: ...
    def low_power(self, *, wakeup: bool = False) -> LowPower:
        """Let the device sleep, in the deepest state that the platform has for it, until ``close()``.

        It must do no DMA, and accesses to its mapped registers that are under way reach plain memory.
        With ``wakeup`` the result has an ``EventFd`` of this name, which tells that the device woke.

        Raises:
            UnsupportedError: the kernel is older than 6.1, or the device's driver cannot.
            KernelError: EINVAL, it sleeps already.
            ClosedError: it was closed or given back.
        """
        with self._lock:
            if self._sleeping is not None and not self._sleeping.closed:
                hint = "leave the low_power() that it is in first"
                raise KernelError(errno.EINVAL, _REQUEST.name, self._file.name, hint=hint)
            self._sleeping = WakeableLowPower(self._file) if wakeup else LowPower(self._file)
            return self._sleeping


def _set(file: DeviceFile, feature: DeviceFeature, data: bytes = b"") -> None:
    try:
        _ask(file, feature, DeviceFeatureFlags.SET, data)
    except KernelError as error:
        if error.errno != errno.ENOTTY:
            raise
        what, since = _SINCE[feature]
        raise UnsupportedError(f"{file.name} has no {what}", hint=f"it came with Linux {since}") from None


def _ask(file: DeviceFile, feature: DeviceFeature, flags: DeviceFeatureFlags, data: bytes = b"") -> None:
    size = ctypes.sizeof(vfio_device_feature) + len(data)
    question = vfio_device_feature(argsz=size, flags=flags | feature)
    file.ioctl(_REQUEST, bytearray(bytes(question) + data))
