"""The open file of a fake device: it responds in the kernel's formats, as vfio-pci does, from the model.

Accesses to mapped registers pass the same checks as on a real device.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from ctypes import sizeof
from typing import TYPE_CHECKING, TypeVar

from vfiotool.pci.capabilities import decoding
from vfiotool.pci.capabilities.standard import MsiX
from vfiotool.testing.dma_space import DmaSpace
from vfiotool.testing.fake_device import FakeDevice
from vfiotool.testing.fake_irqs import FakeIrqs
from vfiotool.vfio.device_file import KernelDeviceFile
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.uapi import (
    DeviceFeature,
    DeviceFeatureFlags,
    DeviceInfoFlags,
    DeviceIoctl,
    PciIrq,
    PciRegion,
    RegionInfoCap,
    RegionInfoFlags,
    vfio_device_feature,
    vfio_device_info,
    vfio_info_cap_header,
    vfio_irq_info,
    vfio_irq_set,
    vfio_region_info,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_REGION_SHIFT = 40  # region N is at N << 40 in the file, as in vfio-pci
_LOW_POWER = (DeviceFeature.LOW_POWER_ENTRY, DeviceFeature.LOW_POWER_EXIT)
_READ_WRITE = RegionInfoFlags.READ | RegionInfoFlags.WRITE

S = TypeVar("S", bound=ctypes.Structure)


class FakeMmio(Mmio):
    """Mapped registers of a fake device: each access is checked, then reaches the model."""

    _device: FakeDevice
    _bar: int
    _start: int

    def connect(self, device: FakeDevice, bar: int, start: int) -> None:
        """Forward accesses to a BAR of a model, from ``start`` bytes on."""
        self._device, self._bar, self._start = device, bar, start

    def read8(self, offset: int, /) -> int:
        super().read8(offset)
        return self._load(offset, 8)

    def read16(self, offset: int, /) -> int:
        super().read16(offset)
        return self._load(offset, 16)

    def read32(self, offset: int, /) -> int:
        super().read32(offset)
        return self._load(offset, 32)

    def read64(self, offset: int, /) -> int:
        super().read64(offset)
        return self._load(offset, 64)

    def write8(self, offset: int, value: int, /) -> None:
        super().write8(offset, value)
        self._store(offset, 8, value)

    def write16(self, offset: int, value: int, /) -> None:
        super().write16(offset, value)
        self._store(offset, 16, value)

    def write32(self, offset: int, value: int, /) -> None:
        super().write32(offset, value)
        self._store(offset, 32, value)

    def write64(self, offset: int, value: int, /) -> None:
        super().write64(offset, value)
        self._store(offset, 64, value)

    def read_block(self, offset: int, size: int, width: int = 32) -> bytes:
        super().read_block(offset, size, width)
        step = width // 8
        values = (self._load(at, width) for at in range(offset, offset + size, step))
        return b"".join(value.to_bytes(step, "little") for value in values)

    def read_fifo(self, offset: int, size: int, width: int = 32) -> bytes:
        super().read_fifo(offset, size, width)
        step = width // 8
        return b"".join(self._load(offset, width).to_bytes(step, "little") for _ in range(size // step))

    def write_block(self, offset: int, data: ReadableBuffer, width: int = 32) -> None:
        super().write_block(offset, data, width)
        for at, value in _words(data, width):
            self._store(offset + at, width, value)

    def write_fifo(self, offset: int, data: ReadableBuffer, width: int = 32) -> None:
        super().write_fifo(offset, data, width)
        for _at, value in _words(data, width):
            self._store(offset, width, value)

    def _load(self, offset: int, width: int) -> int:
        return self._device.read(self._bar, self._start + offset, width)

    def _store(self, offset: int, width: int, value: int) -> None:
        self._device.write(self._bar, self._start + offset, width, value)


class FakeDeviceFile(KernelDeviceFile):
    """The open file of a fake device in the address space ``space``.

    The file descriptor is a memfd: only accesses through this object reach the model.
    """

    def __init__(self, device: FakeDevice, space: DmaSpace, let_go: Callable[[], None]) -> None:
        fd = os.memfd_create(f"fake {device.address}", os.MFD_CLOEXEC)
        os.ftruncate(fd, len(PciRegion) << _REGION_SHIFT)
        super().__init__(fd, device.address, let_go)
        self.device = device
        self.space: DmaSpace = space
        self.irqs = FakeIrqs(device.irqs, lambda: device.bus_master)
        device.opened(self)

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        """Execute an ioctl as vfio-pci does."""
        self.fileno()
        handlers: dict[DeviceIoctl, Callable[[bytearray], None]] = {
            DeviceIoctl.VFIO_DEVICE_GET_INFO: self._device_info,
            DeviceIoctl.VFIO_DEVICE_GET_REGION_INFO: self._region_info,
            DeviceIoctl.VFIO_DEVICE_GET_IRQ_INFO: self._irq_info,
            DeviceIoctl.VFIO_DEVICE_SET_IRQS: self._set_irqs,
            DeviceIoctl.VFIO_DEVICE_RESET: lambda _data: self.device.reset(),
            DeviceIoctl.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: _no_hot_reset,
            DeviceIoctl.VFIO_DEVICE_PCI_HOT_RESET: _no_hot_reset,
            DeviceIoctl.VFIO_DEVICE_FEATURE: self._feature,
        }
        with self._failing(request.name):
            if request not in handlers:
                raise OSError(errno.ENOTTY, "unknown")
            handlers[request](data)
        return 0

    def pread(self, size: int, offset: int) -> bytes:
        """Read from the model in accesses of at most 32 bits, as vfio-pci does."""
        self.fileno()
        with self._failing("read"):
            index, at = self._place(size, offset)
            if index is PciRegion.CONFIG:
                return bytes(self.device.config[at : at + size])
            return b"".join(
                self.device.read(index, one, width * 8).to_bytes(width, "little")
                for one, width in _accesses(at, size)
            )

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write to the model in accesses of at most 32 bits, as vfio-pci does."""
        self.fileno()
        with self._failing("write"):
            index, at = self._place(len(data), offset)
            if index is PciRegion.CONFIG:
                self.device.write_config(at, data)
                return
            for one, width in _accesses(at, len(data)):
                value = int.from_bytes(data[one - at :][:width], "little")
                self.device.write(index, one, width * 8, value)

    def map(self, offset: int, size: int, *, write: bool) -> Mmio:
        """Map registers of the model."""
        with self._revoking:
            window = FakeMmio.of_file(self.fileno(), offset, size, write=write, name=self.name)
            assert isinstance(window, FakeMmio)  # noqa: S101 - of_file returns the class that it is called on
            window.connect(self.device, offset >> _REGION_SHIFT, offset % (1 << _REGION_SHIFT))
            self._windows.add(window)
            return window

    def _release(self) -> None:
        self.irqs.close()
        self.device.closed(self)
        super()._release()

    def _close_in_child(self) -> None:
        self.irqs.close()
        super()._close_in_child()

    @contextlib.contextmanager
    def _failing(self, operation: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(error.errno, operation) from None

    def _size_of(self, index: int) -> int:
        return len(self.device.config) if index == PciRegion.CONFIG else self.device.bars.get(index, 0)

    def _place(self, size: int, offset: int) -> tuple[PciRegion, int]:
        """Return the region that contains these bytes, and their offset in the region."""
        index, at = offset >> _REGION_SHIFT, offset % (1 << _REGION_SHIFT)
        if at >= self._size_of(index):
            raise OSError(errno.EINVAL, "outside")
        if at + size > self._size_of(index):
            raise OSError(errno.EIO, "short")
        if index != PciRegion.CONFIG and not self.device.memory:
            raise OSError(errno.EIO, "memory is off")
        return PciRegion(index), at

    def _device_info(self, data: bytearray) -> None:
        info = _structure(vfio_device_info, data)
        info.flags = DeviceInfoFlags.PCI | DeviceInfoFlags.RESET
        info.num_regions, info.num_irqs = len(PciRegion), len(PciIrq)

    def _region_info(self, data: bytearray) -> None:
        info = _structure(vfio_region_info, data)
        if info.index not in PciRegion.__members__.values() or info.index == PciRegion.VGA:
            raise OSError(errno.EINVAL, "no such region")
        info.offset = info.index << _REGION_SHIFT
        info.size = self._size_of(info.index)
        info.flags = _READ_WRITE if info.size else 0
        if info.size and info.index != PciRegion.CONFIG:
            info.flags |= RegionInfoFlags.MMAP
            msix = decoding.find(bytes(self.device.config), MsiX)
            if msix is not None and msix.table_bar == info.index:
                _add_capability(info, data, RegionInfoCap.MSIX_MAPPABLE)

    def _irq_info(self, data: bytearray) -> None:
        info = _structure(vfio_irq_info, data)
        info.flags, info.count = self.irqs.info(info.index)

    def _set_irqs(self, data: bytearray) -> None:
        _structure(vfio_irq_set, data)
        self.irqs.set(bytes(data))

    def _feature(self, data: bytearray) -> None:
        question = _structure(vfio_device_feature, data)
        if question.flags & 0xFFFF not in _LOW_POWER:
            raise OSError(errno.ENOTTY, "unknown")
        if question.flags & DeviceFeatureFlags.GET or not question.flags & ~0xFFFF:
            raise OSError(errno.EINVAL, "this feature can only be set")


def _structure(kind: type[S], data: bytearray) -> S:
    """Return the structure at the start of the caller's buffer, for the response to be written in place."""
    (argsz,) = struct.unpack_from("=I", data)
    if argsz < sizeof(kind):
        raise OSError(errno.EINVAL, "argsz")
    if argsz > len(data):
        raise OSError(errno.EFAULT, "argsz")
    return kind.from_buffer(data)


def _add_capability(info: vfio_region_info, data: bytearray, number: RegionInfoCap) -> None:
    """Add a capability without content, or set ``argsz`` to the size that is needed."""
    info.flags |= RegionInfoFlags.CAPS
    at, needed = sizeof(vfio_region_info), sizeof(vfio_region_info) + sizeof(vfio_info_cap_header)
    if info.argsz < needed:
        info.argsz, info.cap_offset = needed, 0
        return
    header = vfio_info_cap_header.from_buffer(data, at)
    header.id, header.version, header.next = number, 1, 0
    info.cap_offset = at


def _no_hot_reset(_data: bytearray) -> None:
    raise OSError(errno.ENODEV, "no bridge above it")


def _accesses(at: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and width, in bytes, of each access that vfio-pci makes for a single system call."""
    end = at + size
    while at < end:
        width = next(one for one in (4, 2, 1) if at % one == 0 and at + one <= end)
        yield at, width
        at += width


def _words(data: ReadableBuffer, width: int) -> Iterator[tuple[int, int]]:
    """Yield offset and value of each word of ``width`` bits."""
    raw, step = bytes(memoryview(data).cast("B")), width // 8
    for at in range(0, len(raw), step):
        yield at, int.from_bytes(raw[at : at + step], "little")
