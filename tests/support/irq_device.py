"""An open device with a fake kernel: interrupts, resets and features as in vfio-pci."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

from vfiotool.errors import KernelError
from vfiotool.vfio.device_file import KernelDeviceFile
from vfiotool.vfio.mmio.windows import LOW_POWER
from vfiotool.vfio.uapi import DeviceIoctl

# <linux/vfio.h>
INFO_RESET, INFO_PCI = 1, 2
EVENTFD, MASKABLE, AUTOMASKED, NORESIZE = 1, 2, 4, 8
DATA_NONE, DATA_EVENTFD = 1, 4
MASK, UNMASK, TRIGGER = 8, 16, 32
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
LOW_POWER_ENTRY, LOW_POWER_WAKEUP, LOW_POWER_EXIT = 3, 4, 5
INTX, MSI, MSIX, ERR, REQ = range(5)

ADDRESS = "0000:00:13.0"


class IrqDevice(KernelDeviceFile):
    """Answers ioctls like the kernel; it is closed and revoked like a real file.

    ``granted`` is how many vectors the kernel has to give, ``answers`` overrides what an ioctl says,
    ``set_irqs`` has the arguments of each call: (flags, index, start, count).
    """

    def __init__(self) -> None:
        super().__init__(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), ADDRESS)
        self.info_flags = INFO_RESET | INFO_PCI
        self.irqs = {
            INTX: (EVENTFD | MASKABLE | AUTOMASKED, 1),
            MSI: (EVENTFD | NORESIZE, 4),
            MSIX: (EVENTFD, 65),
            ERR: (EVENTFD | NORESIZE, 1),
            REQ: (EVENTFD | NORESIZE, 1),
        }
        self.granted = 65
        self.masked = False
        self.raised_while_masked = False
        self.resets = 0
        self.sleeps: list[bool] = []
        self.features: dict[int, int] = {0: SET, 3: SET, 4: SET, 5: SET}
        self.feature_calls: list[bytes] = []
        self.dependents: list[tuple[int, int, int, int]] = []
        self.hot_reset_flags = 0
        self.hot_resets: list[tuple[int, ...]] = []
        self.answers: dict[DeviceIoctl, Callable[[bytearray], int]] = {}
        self.set_irqs: list[tuple[int, int, int, int]] = []
        self._armed: dict[int, list[int]] = {}

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        self.fileno()
        answer = self.answers.get(request) or getattr(self, f"_{request.name.lower()}")
        result: int = answer(data)
        if result < 0:
            raise KernelError(-result, request.name, self.name)
        return result

    def raise_irq(self, index: int, number: int = 0) -> None:
        """Raise an interrupt of the device."""
        if index == INTX:
            if self.masked:
                self.raised_while_masked = True
                return
            self.masked = True
        os.eventfd_write(self._armed[index][number], 1)

    def armed(self, index: int) -> int:
        """Return how many vectors of an index the kernel signals."""
        return len(self._armed.get(index, ()))

    def set_asleep(self, asleep: bool, reason: tuple[str, str] = LOW_POWER) -> None:
        super().set_asleep(asleep, reason)
        self.sleeps.append(asleep)

    def close(self) -> None:
        super().close()
        for index in list(self._armed):
            self._forget(index)

    def revoke(self, reason: str) -> None:
        super().revoke(reason)
        for index in list(self._armed):
            self._forget(index)

    def _vfio_device_get_info(self, data: bytearray) -> int:
        struct.pack_into("=5I", data, 0, 20, self.info_flags, 9, 5, 0)
        return 0

    def _vfio_device_get_irq_info(self, data: bytearray) -> int:
        index = struct.unpack_from("=I", data, 8)[0]
        if index not in self.irqs:
            return -errno.EINVAL
        struct.pack_into("=4I", data, 0, 16, self.irqs[index][0], index, self.irqs[index][1])
        return 0

    def _vfio_device_set_irqs(self, data: bytearray) -> int:
        argsz, flags, index, start, count = struct.unpack_from("=5I", data)
        assert argsz == len(data)
        self.set_irqs.append((flags, index, start, count))
        if index not in self.irqs or start + count > self.irqs[index][1]:
            return -errno.EINVAL
        if flags & DATA_EVENTFD:
            return self._enable(index, start, struct.unpack_from(f"={count}i", data, 20))
        if index not in self._armed:
            return -errno.EINVAL
        if flags & (MASK | UNMASK):
            return self._set_mask(index, masked=bool(flags & MASK))
        if not count:
            self._forget(index)
        for fd in self._armed.get(index, [])[start : start + count]:
            os.eventfd_write(fd, 1)
        return 0

    def _enable(self, index: int, start: int, fds: tuple[int, ...]) -> int:
        if index <= MSIX and any(other in self._armed for other in {INTX, MSI, MSIX} - {index}):
            return -errno.EINVAL
        if start + len(fds) > self.granted:
            return -errno.ENOSPC if start else self.granted
        known = self._armed.setdefault(index, [])
        assert len(known) == start, "this fake enables vectors in order"
        known.extend(os.dup(fd) for fd in fds)
        return 0

    def _set_mask(self, index: int, *, masked: bool) -> int:
        if index != INTX:
            return -errno.ENOTTY
        self.masked = masked
        if not masked and self.raised_while_masked:
            self.raised_while_masked = False
            self.raise_irq(INTX)
        return 0

    def _forget(self, index: int) -> None:
        for fd in self._armed.pop(index):
            os.close(fd)
        self.masked = self.raised_while_masked = False

    def _vfio_device_reset(self, data: bytearray) -> int:
        self.resets += 1
        return 0

    def _vfio_device_get_pci_hot_reset_info(self, data: bytearray) -> int:
        if not self.dependents:
            return -errno.ENODEV
        count = len(self.dependents)
        struct.pack_into("=3I", data, 0, struct.unpack_from("=I", data)[0], self.hot_reset_flags, count)
        if len(data) < 12 + 8 * count:
            return -errno.ENOSPC
        for number, device in enumerate(self.dependents):
            struct.pack_into("=IHBB", data, 12 + 8 * number, *device)
        return 0

    def _vfio_device_pci_hot_reset(self, data: bytearray) -> int:
        argsz, flags, count = struct.unpack_from("=3I", data)
        assert (argsz, flags) == (len(data), 0)
        self.hot_resets.append(struct.unpack_from(f"={count}i", data, 12))
        return 0

    def _vfio_device_feature(self, data: bytearray) -> int:
        argsz, flags = struct.unpack_from("=2I", data)
        assert argsz == len(data)
        self.feature_calls.append(bytes(data))
        offers = self.features.get(flags & 0xFFFF)
        if offers is None:
            return -errno.ENOTTY
        return -errno.EINVAL if flags & (GET | SET) & ~offers else 0
