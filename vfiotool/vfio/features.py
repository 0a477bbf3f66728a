"""Features of a device beside regions and interrupts: VFIO_DEVICE_FEATURE."""

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

# Features that a device may lack, and the kernel that introduced each.
_SINCE = {
    DeviceFeature.PCI_VF_TOKEN: ("VF token", "5.7; only a PF on vfio-pci has one for its VFs"),
    DeviceFeature.LOW_POWER_ENTRY: ("low power", "6.1"),
    DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP: ("low power with wakeup", "6.1"),
    DeviceFeature.LOW_POWER_EXIT: ("low power", "6.1"),
}


# Errnos of PROBE: of the kernel, of the operation, of the device's driver.
_MISSING = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP)


class LowPower:
    """A device in a low-power state; a context manager that wakes the device. Threads may share it.

    Accesses to mapped registers raise AccessError meanwhile. System calls, for example reads of
    configuration space, wake the device for their duration. See ``vfio_pci_core_pm_entry`` in the kernel.
    """

    def __init__(self, file: DeviceFile) -> None:
        """Allow the device to enter low power. See ``Features.low_power``."""
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
        """Wake the device; calls after the first, or after the device was released, do nothing.

        Raises:
            KernelError: the device does not wake, and its mapped registers stay blocked.
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
    """A device in a low-power state until a PME or any system call wakes it, which signals ``wakeup``.

    A woken device stays awake. Its mapped registers stay blocked until ``close()`` nevertheless.
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
        """Return which operations a feature has: GET, SET, both, or none if the feature is missing.

        Raises:
            KernelError: an errno other than those that mean "missing".
        """
        found = DeviceFeatureFlags(0)
        for way in (DeviceFeatureFlags.GET, DeviceFeatureFlags.SET):
            try:
                _ask(self._file, feature, DeviceFeatureFlags.PROBE | way)
            except KernelError as error:
                if error.errno not in _MISSING:
                    raise
            else:
                found |= way
        return found

    def set_vf_token(self, token: uuid.UUID) -> None:
        """Set the VF token, the secret that is needed to open a VF of this PF; every call replaces it.

        When the PF is bound to its driver, the kernel sets a random token that nobody knows. VFs can be
        opened only after this call. Opening the PF while a VF is open takes the token as well.

        Raises:
            UnsupportedError: the device is not a PF.
        """
        _set(self._file, DeviceFeature.PCI_VF_TOKEN, token.bytes)

    @overload
    def low_power(self, *, wakeup: Literal[False] = ...) -> LowPower: ...
    @overload
    def low_power(self, *, wakeup: Literal[True]) -> WakeableLowPower: ...
    def low_power(self, *, wakeup: bool = False) -> LowPower:
        """Allow the device to enter the deepest low-power state of the platform, until ``close()``.

        The device must do no DMA. Running accesses to its mapped registers reach plain memory. With
        ``wakeup`` the result has an ``EventFd`` named ``wakeup``, which is signalled when the device wakes.

        Raises:
            UnsupportedError: the kernel is older than 6.1, or the device's driver does not support it.
            KernelError: EINVAL, the device is in low power already.
            ClosedError: the device was closed or released.
        """
        with self._lock:
            if self._sleeping is not None and not self._sleeping.closed:
                hint = "leave the context of the earlier low_power() call first"
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
        raise UnsupportedError(f"{file.name} has no {what}", hint=f"it needs Linux {since}") from None


def _ask(file: DeviceFile, feature: DeviceFeature, flags: DeviceFeatureFlags, data: bytes = b"") -> None:
    size = ctypes.sizeof(vfio_device_feature) + len(data)
    question = vfio_device_feature(argsz=size, flags=flags | feature)
    file.ioctl(_REQUEST, bytearray(bytes(question) + data))
