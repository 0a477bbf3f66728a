"""BARs as the target of another device's DMA: by their address, by a dma-buf, and what a refusal says."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.memory_device_file import ALL, MemoryDeviceFile, region_answer
from vfiotool.errors import ClosedError, DmaMapError, KernelError, UnsupportedError
from vfiotool.testing.fake_edu import FakeEdu
from vfiotool.testing.fake_iommu import FakeIommu
from vfiotool.testing.fake_tree import FakeTree
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.iommu import IommuMode
from vfiotool.vfio.iommu.address_space import AddressSpace
from vfiotool.vfio.iommu.process_maps import has_registers
from vfiotool.vfio.iommu.ranges import Ranges
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.regions.region import Region
from vfiotool.vfio.regions.regions import Regions
from vfiotool.vfio.uapi import DeviceIoctl, DmaMapFlags

PAGE = 4096
BAR, SIZE = 2, 16 * PAGE
BOTH = DmaMapFlags.READ | DmaMapFlags.WRITE
GET_DMA_BUF = 1 << 16 | 11  # VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF, <linux/vfio.h> of 6.19


class ExportingFile(MemoryDeviceFile):
    """A device whose kernel exports its BARs, or answers with ``code``."""

    def __init__(self, code: int = 0) -> None:
        super().__init__({BAR: region_answer(ALL, SIZE, BAR << 40)})
        self.code = code
        self.exported: list[tuple[int, int, int]] = []
        self.dma_bufs: list[int] = []

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        if request is not DeviceIoctl.VFIO_DEVICE_FEATURE:
            return super().ioctl(request, data)
        argsz, feature, index, open_flags, flags, count, offset, size = struct.unpack("=IIIIIIQQ", data)
        assert (argsz, feature, flags, count) == (len(data), GET_DMA_BUF, 0, 1)
        assert open_flags == os.O_RDWR | os.O_CLOEXEC
        if self.code:
            raise KernelError(self.code, request.name, self.name)
        self.exported.append((index, offset, size))
        self.dma_bufs.append(os.memfd_create("dma-buf"))
        return self.dma_bufs[-1]


@pytest.fixture
def file() -> Iterator[ExportingFile]:
    with ExportingFile() as opened:
        yield opened


def bar_of(file: ExportingFile) -> Region:
    return Regions(file)[BAR]


# Export


def test_a_window_exports_its_own_part_of_the_bar(file: ExportingFile) -> None:
    with bar_of(file).map(2 * PAGE, 4 * PAGE) as window:
        os.close(window.dma_buf(PAGE, 2 * PAGE))
    assert file.exported == [(BAR, 3 * PAGE, 2 * PAGE)]


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EOPNOTSUPP])
def test_a_kernel_or_driver_without_exports_is_unsupported(file: ExportingFile, code: int) -> None:
    file.code = code
    with bar_of(file).map() as window, pytest.raises(UnsupportedError, match="cannot be exported") as caught:
        window.dma_buf(0, PAGE)
    assert "6.19" in caught.value.hint


def test_another_refusal_of_an_export_keeps_its_errno(file: ExportingFile) -> None:
    file.code = errno.EINVAL
    with bar_of(file).map() as window, pytest.raises(KernelError) as caught:
        window.dma_buf(0, 100)
    assert caught.value.errno == errno.EINVAL


def test_neither_a_closed_window_nor_memory_is_exported(file: ExportingFile) -> None:
    window = bar_of(file).map()
    window.close()
    with pytest.raises(ClosedError):
        window.dma_buf(0, PAGE)
    with Mmio.of_memory(bytearray(PAGE)) as memory, pytest.raises(UnsupportedError):
        memory.dma_buf(0, PAGE)
    assert file.exported == []


# Map


class RefusingIommu(FakeIommu):
    """An iommufd that pins memory alone, and maps dma-bufs if it ``can_map_files``."""

    can_map_files = True

    def __init__(self, model: FakeEdu) -> None:
        super().__init__(IommuMode.IOMMUFD, [model])
        self.code = errno.EFAULT
        self.file_code = 0
        self.mapped: list[tuple[str, int, int, DmaMapFlags]] = []

    def map(self, vaddr: int, iova: int, size: int, access: DmaMapFlags) -> None:
        raise DmaMapError(self.code, "IOMMU_IOAS_MAP", iova, size)

    def map_file(self, fd: int, start: int, iova: int, size: int, access: DmaMapFlags) -> None:
        if self.file_code:
            raise DmaMapError(self.file_code, "IOMMU_IOAS_MAP_FILE", iova, size)
        self.mapped.append((os.readlink(f"/proc/self/fd/{fd}"), start, size, access))

    def unmap(self, iova: int, size: int) -> int:
        return size


@pytest.fixture
def space() -> RefusingIommu:
    return RefusingIommu(FakeEdu("0000:00:11.0"))


@pytest.fixture
def device(space: RefusingIommu) -> Iterator[Device]:
    with open_device("0000:00:11.0", iommu=Dma(space)) as opened:
        yield opened


def test_a_bar_that_iommufd_refuses_by_its_address_is_mapped_by_a_dma_buf(
    space: RefusingIommu, device: Device, file: ExportingFile
) -> None:
    with (
        bar_of(file).map(PAGE) as window,
        device.dma.map(window, 2 * PAGE, offset=PAGE, write=False) as mapping,
    ):
        assert (mapping.address, mapping.size) == (window.address + PAGE, 2 * PAGE)
        assert device.dma.mapped == (mapping,)
    assert file.exported == [(BAR, 2 * PAGE, 2 * PAGE)]
    assert space.mapped == [("/memfd:dma-buf (deleted)", 0, 2 * PAGE, DmaMapFlags.READ)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.dma_bufs[0])


@pytest.mark.parametrize("lacks", ["exports", "files", "registers", "another errno"])
def test_without_dma_bufs_the_refusal_of_the_address_is_raised_and_no_iova_is_lost(
    space: RefusingIommu, device: Device, file: ExportingFile, lacks: str
) -> None:
    file.code = errno.ENOTTY if lacks == "exports" else 0
    space.can_map_files = lacks != "files"
    space.code = errno.ENOMEM if lacks == "another errno" else errno.EFAULT
    with bar_of(file).map() as window:
        memory = window.address if lacks == "registers" else window
        for _ in range(2):
            with pytest.raises(DmaMapError) as caught:
                device.dma.map(memory, PAGE, iova=0x10000)
            assert (caught.value.errno, caught.value.operation) == (space.code, "IOMMU_IOAS_MAP")
    assert (file.exported, space.mapped) == ([], [])


def test_a_bar_whose_device_is_off_is_called_revoked_and_nothing_is_left(
    space: RefusingIommu, device: Device, file: ExportingFile
) -> None:
    space.file_code = errno.ENODEV
    with bar_of(file).map() as window:
        for _ in range(2):
            with pytest.raises(DmaMapError, match="the BAR was revoked") as caught:
                device.dma.map(window, iova=0x10000)
    assert "memory to True" in caught.value.hint
    for fd in file.dma_bufs:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# What a refusal says

REGISTERS = (0x7F0000100000, 0x7F0000110000)
MAPS = f"""\
55d0c0a00000-55d0c0a01000 r-xp 00000000 fe:01 1234                       /usr/bin/python3.11
{REGISTERS[0]:x}-{REGISTERS[1]:x} rw-s 20000000000 00:0e 1036            {{}}
7ffd1f000000-7ffd1f021000 rw-p 00000000 00:00 0                          [stack]
7ffd1f100000-7ffd1f101000 rw-p 00000000 00:00 0
not a line of maps
"""
NAMES = (
    "anon_inode:[vfio-device]",
    "/dev/vfio/devices/vfio0",
    "/sys/devices/pci0000:00/0000:00:03.0/resource0",
    "/sys/devices/pci0000:00/0000:00:03.0/resource2_wc",
)


@pytest.fixture
def maps(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    tree = FakeTree(str(tmp_path))
    monkeypatch.setattr("vfiotool.vfio.iommu.process_maps.Tree", lambda: tree.tree)
    return lambda name: tree.put("/proc/self/maps", MAPS.format(name))


@pytest.mark.parametrize("name", NAMES)
def test_registers_are_known_wherever_a_range_meets_them(maps: Callable[[str], None], name: str) -> None:
    maps(name)
    start, end = REGISTERS
    for address, size in ((start, PAGE), (end - 1, 1), (start - PAGE, 2 * PAGE), (0, 1 << 48)):
        assert has_registers(address, size)
    for address, size in ((start - PAGE, PAGE), (end, PAGE), (0x7FFD1F000000, PAGE), (start, 0)):
        assert not has_registers(address, size)


@pytest.mark.parametrize("name", ["/dev/shm/vfio", "/dev/mem", "/home/u/anon_inode:[vfio-device]", ""])
def test_other_mappings_are_not_called_registers(maps: Callable[[str], None], name: str) -> None:
    maps(name)
    assert not has_registers(REGISTERS[0], PAGE)


def test_what_cannot_be_read_explains_nothing(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfiotool.vfio.iommu.process_maps.Tree", lambda: FakeTree(str(tmp_path)).tree)
    assert not has_registers(REGISTERS[0], PAGE)


class Space(AddressSpace):
    def __init__(self, *, is_iommufd: bool) -> None:
        self.is_iommufd = is_iommufd
        self.ioas = 1 if is_iommufd else 0

    def fileno(self) -> int:
        return 7


class RefusingShim:
    @staticmethod
    def vt_dma_map(*_: object) -> int:
        return -errno.EFAULT

    @staticmethod
    def vt_dma_map_ranges(*arguments: object) -> int:
        arguments[-1][0] = 1  # type: ignore[index]
        return -errno.EFAULT


@pytest.mark.parametrize("is_iommufd", [True, False], ids=["iommufd", "type1"])
@pytest.mark.parametrize("at", [REGISTERS[0], 0x7FFD1F000000], ids=["registers", "memory"])
def test_a_refused_address_of_registers_is_not_called_memory(
    maps: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, is_iommufd: bool, at: int
) -> None:
    maps(NAMES[0])
    monkeypatch.setattr("vfiotool.vfio.iommu.address_space.lib", RefusingShim)
    space = Space(is_iommufd=is_iommufd)
    ranges = Ranges.of([(0x1000, 0x1000, PAGE), (at, 0x8000, PAGE)])
    calls = (partial(space.map, at, 0x8000, PAGE, BOTH), partial(space.map_ranges, ranges, BOTH))
    for refused in calls:
        with pytest.raises(DmaMapError) as caught:
            refused()
        assert caught.value.errno == errno.EFAULT
        if is_iommufd and at == REGISTERS[0]:
            assert "registers of a device, and iommufd maps no registers by their address" in str(
                caught.value
            )
            assert "type1v2" in caught.value.hint
            assert "6.19" in caught.value.hint
        else:
            assert "extends beyond the memory" in str(caught.value)
