"""A fake device file for unit tests: replies are preset, and regions are parts of a sparse memfd."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping

from vfiotool.errors import KernelError
from vfiotool.testing.built_config import config_space
from vfiotool.vfio.device_file import KernelDeviceFile
from vfiotool.vfio.uapi import DeviceIoctl, PciRegion, RegionInfoFlags

ADDRESS = "0000:00:10.0"
READ, WRITE, MMAP, CAPS = (
    RegionInfoFlags.READ,
    RegionInfoFlags.WRITE,
    RegionInfoFlags.MMAP,
    RegionInfoFlags.CAPS,
)
ALL = READ | WRITE | MMAP
_INFO = struct.Struct("=IIIIQQ")


def region_answer(
    flags: int,
    size: int,
    offset: int,
    areas: tuple[tuple[int, int], ...] | None = None,
    *,
    msix: bool = False,
) -> bytes:
    """Return a reply to VFIO_DEVICE_GET_REGION_INFO; ``areas`` are the areas of a SPARSE_MMAP capability."""
    caps = []
    if areas is not None:
        caps.append(
            (1, struct.pack("=II", len(areas), 0) + b"".join(struct.pack("=QQ", *one) for one in areas))
        )
    if msix:
        caps.append((3, b""))
    chain, at = b"", _INFO.size
    for number, (kind, body) in enumerate(caps, 1):
        at += 8 + len(body)
        chain += struct.pack("=HHI", kind, 1, at if number < len(caps) else 0) + body
    flags |= CAPS if caps else 0
    return _INFO.pack(_INFO.size + len(chain), flags, 0, _INFO.size if caps else 0, size, offset) + chain


class MemoryDeviceFile(KernelDeviceFile):
    """Fakes the kernel behind a PCI device's file; a region without a reply does not exist (EINVAL).

    ``written`` has the (offset, bytes) of each ``pwrite``.
    """

    def __init__(self, answers: Mapping[int, bytes], *, config: bytes = b"", num_regions: int = 9) -> None:
        fd = os.memfd_create("vfio-device")
        os.truncate(fd, 16 << 40)
        os.pwrite(fd, config, at(PciRegion.CONFIG))
        super().__init__(fd, ADDRESS)
        self.answers = dict(answers)
        if config:
            self.answers[PciRegion.CONFIG] = region_answer(READ | WRITE, len(config), at(PciRegion.CONFIG))
        self.num_regions = num_regions
        self.written: list[tuple[int, bytes]] = []

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        self.fileno()
        (room, _, index) = struct.unpack_from("=III", data)
        if request is DeviceIoctl.VFIO_DEVICE_GET_INFO:
            answer = struct.pack("=IIIII", 20, 2, self.num_regions, 5, 0)
        elif index in self.answers:
            answer = self.answers[index]
        else:
            raise KernelError(errno.EINVAL, request.name, self.name)
        data[: min(room, len(answer))] = answer[:room]
        return 0

    def pwrite(self, data: bytes, offset: int) -> None:
        super().pwrite(data, offset)
        self.written.append((offset, data))


def at(index: int) -> int:
    """Return the offset of a region in vfio-pci's file."""
    return index << 40


def device(config: bytes | None = None) -> MemoryDeviceFile:
    """Return a device with a BAR of four pages, a BAR of I/O ports, a read-only BAR, and a ROM."""
    return MemoryDeviceFile(
        {
            PciRegion.BAR0: region_answer(ALL, 0x4000, at(0)),
            PciRegion.BAR1: region_answer(READ | WRITE, 0x100, at(1)),
            PciRegion.BAR2: region_answer(READ | MMAP, 0x1000, at(2)),
            PciRegion.BAR3: region_answer(0, 0, at(3)),
            PciRegion.ROM: region_answer(READ, 0x800, at(6)),
        },
        config=enabled(config_space()) if config is None else config,
    )


def enabled(config: bytes) -> bytes:
    """Return configuration space with memory on, as VFIO opens a device."""
    return config[:4] + b"\x02" + config[5:]


def with_msix(table: int, pba: int, count: int = 4) -> bytes:
    """Return configuration space with MSI-X; table and pending bits are at (offset | BAR)."""
    body = struct.pack("<HII", count - 1, table, pba)
    return enabled(config_space(capabilities=[(0x11, 0x40, body)]))
