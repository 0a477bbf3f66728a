"""The fakes that drivers are tested on: what tests/contract does not hold to the kernel already."""

from __future__ import annotations

import errno
import mmap
import os
import select
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from vfiotool.errors import (
    AccessError,
    ClosedError,
    DeviceNotFoundError,
    DmaMapError,
    IrqTimeoutError,
    KernelError,
    UnsupportedError,
)
from vfiotool.testing import DmaFault, FakeDevice, FakeEdu, FakeIommu, config_space, open_fake
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.uapi import DeviceFeature, DeviceIoctl, DmaMapFlags, IrqSetFlags, PciIrq, RegionInfoFlags

PAGE = mmap.PAGESIZE
MASK = (1 << 28) - 1
BOTH = DmaMapFlags.READ | DmaMapFlags.WRITE
TRIGGER = IrqSetFlags.ACTION_TRIGGER
EVENTFD = IrqSetFlags.DATA_EVENTFD
IOVA = 0x10_0000


@pytest.fixture
def model() -> FakeEdu:
    return FakeEdu()


@pytest.fixture
def edu(model: FakeEdu) -> Iterator[Device]:
    with open_fake(model) as device:
        yield device


# edu


def test_edu_computes(edu: Device) -> None:
    with edu.regions.bar0.map() as bar:
        assert bar.read32(0) == 0x010000ED
        bar.write32(4, 0x0F0F_1234)
        assert bar.read32(4) == 0xF0F0_EDCB
        for number, factorial in (
            (0, 1),
            (5, 120),
            (13, 1932053504),
            (33, 0x8000_0000),
            (34, 0),
            (0xFFFF_FFFF, 0),
        ):
            bar.write32(8, number)
            assert bar.read32(8) == factorial
        assert bar.read32(0xA0) == 0xFFFF_FFFF
        assert bar.read16(0) == 0xFFFF


def test_edu_raises_an_interrupt_when_it_has_computed(edu: Device) -> None:
    edu.bus_master = True
    with edu.regions.bar0.map() as bar, edu.irqs.msi.enable() as (vector,):
        bar.write32(8, 5)
        assert vector.read() == 0
        bar.write32(0x20, 0x80)
        bar.write32(8, 5)
        assert vector.wait(0) == 1
        assert bar.read32(0x24) == 1
        bar.write32(0x64, 1)
        assert bar.read32(0x24) == 0


def test_edu_does_dma_as_the_readme_has_it(edu: Device) -> None:
    with (
        edu.regions.bar0.map() as bar,
        edu.dma.alloc(PAGE, iova_max=MASK) as buffer,
        edu.irqs.msi.enable(1) as (vector,),
    ):
        edu.bus_master = True
        buffer[:4] = b"ping"
        for offset, value in ((0x80, buffer.iova), (0x88, 0x40000), (0x90, 4), (0x98, 0b101)):
            bar.write64(offset, value)
        assert vector.wait(timeout=1.0) == 1
        for offset, value in ((0x80, 0x40000), (0x88, buffer.iova + 8), (0x90, 4), (0x98, 0b111)):
            bar.write64(offset, value)
        assert vector.wait(timeout=1.0) == 1
        assert buffer[8:12] == b"ping"


@pytest.mark.parametrize(("at", "size"), [(0, 4096), (0, 0), (1, 4095), (-1, 1), (4096, 1)])
def test_edu_that_reaches_beyond_its_buffer_ends_the_test(edu: Device, at: int, size: int) -> None:
    edu.bus_master = True
    with edu.regions.bar0.map() as bar:
        bar.write64(0x88, 0x40000 + at)
        bar.write64(0x90, size)
        with pytest.raises(AssertionError, match="outside of the buffer"):
            bar.write64(0x98, 1)


def test_without_bus_mastering_nothing_leaves_the_device(edu: Device, model: FakeEdu) -> None:
    assert not edu.bus_master
    with edu.dma.alloc(PAGE, iova=IOVA) as buffer, edu.irqs.msi.enable() as (vector,):
        with pytest.raises(DmaFault):
            model.dma_write(IOVA, b"data")
        model.interrupt()
        assert vector.read() == 0
        assert buffer[:4] == bytes(4)
        edu.bus_master = True
        model.dma_write(IOVA, b"data")
        model.interrupt()
        assert vector.wait(0) == 1
        assert buffer[:4] == b"data"


# Interrupts


def test_intx_is_masked_each_time_and_comes_again_while_it_is_raised(edu: Device, model: FakeEdu) -> None:
    with edu.irqs.intx.enable() as (line,):
        model.interrupt()
        model.interrupt()
        assert line.wait(0) == 1
        line.unmask()
        assert line.wait(0) == 1
        model.calm()
        line.unmask()
        assert line.read() == 0
        line.mask()
        model.interrupt()
        assert line.read() == 0
        line.unmask()
        assert line.wait(0) == 1


class ManyVectors(FakeDevice):
    bars: ClassVar[Mapping[int, int]] = {0: 2 * PAGE, 4: PAGE}
    irqs: ClassVar[Mapping[PciIrq, int]] = {PciIrq.MSIX: 4, PciIrq.ERR: 1}

    def __init__(self) -> None:
        msix = (0x11, 0x40, struct.pack("<HII", 3, PAGE | 4, 0x800 | 4))
        super().__init__("0000:01:00.0", config=config_space(capabilities=[msix]))


def test_msix_has_vectors_of_their_own_and_grows() -> None:
    model = ManyVectors()
    with open_fake(model) as device, device.irqs.msix.enable(2) as vectors:
        device.bus_master = True
        more = vectors.grow(4)
        for number in (0, 3, 3):
            model.interrupt(number)
        assert [vector.read() for vector in vectors] == [1, 0, 0, 2]
        assert [vector.index for vector in more] == [2, 3]
        vectors[1].trigger()
        assert vectors[1].wait(0) == 1
        assert not device.irqs.msi.count
        assert device.irqs.err.count == 1


def test_an_enabled_vector_outlives_the_eventfd_that_it_was_given(edu: Device, model: FakeEdu) -> None:
    """As the kernel has a reference of its own to it."""
    edu.bus_master = True
    event = os.eventfd(0)
    set_irqs(edu, EVENTFD | TRIGGER, PciIrq.MSI, 0, [event])
    reader = os.dup(event)
    os.close(event)
    model.interrupt()
    assert select.select([reader], [], [], 0)[0]
    os.close(reader)


def set_irqs(
    device: Device, flags: int, index: int, start: int, items: list[int], count: int | None = None
) -> None:
    data = struct.pack(f"={len(items)}i", *items)
    number = len(items) if count is None else count
    head = struct.pack("=5I", 20 + len(data), flags, index, start, number)
    device.file.ioctl(DeviceIoctl.VFIO_DEVICE_SET_IRQS, bytearray(head + data))


@pytest.mark.parametrize(
    ("code", "flags", "index", "start", "items", "count"),
    [
        pytest.param(errno.EINVAL, EVENTFD | TRIGGER, 9, 0, [-1], None, id="index"),
        pytest.param(errno.EINVAL, EVENTFD | TRIGGER, PciIrq.ERR, 0, [-1], None, id="no PCI Express"),
        pytest.param(errno.EINVAL, EVENTFD | TRIGGER, PciIrq.MSI, 1, [-1], None, id="start"),
        pytest.param(errno.EINVAL, EVENTFD | TRIGGER, PciIrq.MSI, 0, [-1, -1], None, id="count"),
        pytest.param(errno.EINVAL, EVENTFD | TRIGGER, PciIrq.MSI, 0, [], 1, id="no data"),
        pytest.param(errno.EINVAL, EVENTFD | 1 | TRIGGER, PciIrq.MSI, 0, [-1], None, id="two kinds of data"),
        pytest.param(errno.EINVAL, EVENTFD, PciIrq.MSI, 0, [-1], None, id="no action"),
        pytest.param(errno.EINVAL, EVENTFD | TRIGGER | 1 << 9, PciIrq.MSI, 0, [-1], None, id="unknown flag"),
        pytest.param(errno.EBADF, EVENTFD | TRIGGER, PciIrq.MSI, 0, [1 << 20], None, id="no fd"),
        pytest.param(errno.EINVAL, EVENTFD | TRIGGER, PciIrq.MSI, 0, [0], None, id="no eventfd"),
        pytest.param(errno.EINVAL, 1 | TRIGGER, PciIrq.MSI, 0, [], 1, id="trigger what is not enabled"),
        pytest.param(errno.ENOTTY, 1 | IrqSetFlags.ACTION_MASK, PciIrq.MSI, 0, [], 1, id="mask MSI"),
        pytest.param(
            errno.EINVAL, 1 | IrqSetFlags.ACTION_MASK, PciIrq.INTX, 0, [], 1, id="mask a line that is off"
        ),
    ],
)
def test_what_the_kernel_refuses_of_interrupts(
    edu: Device, code: int, flags: int, index: int, start: int, items: list[int], count: int | None
) -> None:
    with pytest.raises(KernelError) as caught:
        set_irqs(edu, flags, index, start, items, count)
    assert caught.value.errno == code


def test_a_driver_is_asked_to_let_go(model: FakeEdu) -> None:
    asked = threading.Event()
    with open_fake(model) as device:
        device.on_request = lambda _device: asked.set()
        with device.irqs.msi.enable() as (vector,):
            model.ask_back()
            with pytest.raises(ClosedError) as caught:
                vector.wait(10)
        assert asked.is_set()
        assert "requested it" in caught.value.hint


# Regions and configuration space


def test_regions_answer_as_vfio_pci_does() -> None:
    with open_fake(ManyVectors()) as device:
        assert [(region.index, region.size) for region in device.regions] == [
            (0, 2 * PAGE),
            (4, PAGE),
            (7, 256),
        ]
        flags = RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.MMAP
        assert device.regions.bar0.info.flags == flags
        assert device.regions.bar4.info.flags == flags | RegionInfoFlags.CAPS
        assert device.regions.bar4.info.msix_mappable
        assert not device.regions.bar0.info.msix_mappable
        with pytest.raises(UnsupportedError):
            device.regions.bar1  # noqa: B018 - it raises


class Scratch(FakeDevice):
    """Notes each access."""

    def __init__(self) -> None:
        super().__init__("0000:01:00.0")
        self.seen: list[tuple[int, int, int, int | None]] = []

    def read(self, bar: int, offset: int, width: int) -> int:
        self.seen.append((bar, offset, width, None))
        return 0x8877665544332211 & (1 << width) - 1

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.seen.append((bar, offset, width, value))


def test_each_access_reaches_the_model_with_its_width() -> None:
    model = Scratch()
    with open_fake(model) as device, device.regions.bar0.map() as bar:
        assert [bar.read8(1), bar.read16(2), bar.read32(4), bar.read64(8)] == [
            0x11,
            0x2211,
            0x44332211,
            0x8877665544332211,
        ]
        bar.write8(3, 0xFF)
        bar.write16(2, 1)
        bar.write32(4, 2)
        bar.write64(8, 3)
        assert model.seen == [
            *((0, offset, width, None) for offset, width in ((1, 8), (2, 16), (4, 32), (8, 64))),
            *((0, 3, 8, 0xFF), (0, 2, 16, 1), (0, 4, 32, 2), (0, 8, 64, 3)),
        ]


def test_blocks_and_fifos_are_many_accesses() -> None:
    model = Scratch()
    with open_fake(model) as device, device.regions.bar0.map() as bar:
        assert bar.read_block(16, 8) == bytes.fromhex("1122334411223344")
        assert bar.read_fifo(4, 4, 16) == bytes.fromhex("11221122")
        bar.write_block(8, b"\1\2\3\4", 16)
        bar.write_fifo(0, b"\1\2", 8)
    assert [(offset, width, value) for _bar, offset, width, value in model.seen] == [
        (16, 32, None),
        (20, 32, None),
        (4, 16, None),
        (4, 16, None),
        (8, 16, 0x0201),
        (10, 16, 0x0403),
        (0, 8, 1),
        (0, 8, 2),
    ]


def test_what_a_mapped_region_refuses_the_model_does_not_see() -> None:
    model = Scratch()
    with open_fake(model) as device:
        with device.regions.bar0.map() as bar:
            for action in (lambda: bar.read32(PAGE), lambda: bar.read32(2), lambda: bar.write8(0, 256)):
                with pytest.raises(AccessError):
                    action()
            with pytest.raises(AccessError):
                bar.read_block(0, 6)
        with pytest.raises(ClosedError):
            bar.read32(0)
    assert model.seen == []


def test_system_calls_reach_the_model_in_natural_accesses() -> None:
    model = Scratch()
    with open_fake(model) as device:
        assert device.regions.bar0.read(7, 1) == bytes.fromhex("11 1122 11223344")
        device.regions.bar0.write32(4, 5)
        assert model.seen == [(0, 1, 8, None), (0, 2, 16, None), (0, 4, 32, None), (0, 4, 32, 5)]
        device.config.memory = False
        with pytest.raises(KernelError) as caught:
            device.regions.bar0.read32(0)
        assert caught.value.errno == errno.EIO


def test_configuration_space_keeps_what_a_driver_may_write(edu: Device) -> None:
    assert (edu.config.vendor_id, edu.config.device_id) == (0x1234, 0x11E8)
    edu.config.write32(0, 0)
    assert edu.config.vendor_id == 0x1234
    edu.config.write8(0x3C, 11)
    assert edu.config.read8(0x3C) == 11
    edu.config.command = 0xFFFF
    assert edu.config.command == 0x0547
    assert [one.id for one in edu.config.capabilities()] == [5]


def test_a_reset_is_the_models(edu: Device, model: FakeEdu) -> None:
    with edu.regions.bar0.map() as bar:
        bar.write32(4, 0)
        assert bar.read32(4) == 0xFFFF_FFFF
        edu.reset()
        assert bar.read32(4) == 0


def test_low_power_is_the_only_feature(edu: Device) -> None:
    assert edu.features.probe(DeviceFeature.LOW_POWER_ENTRY)
    assert not edu.features.probe(DeviceFeature.MIGRATION)
    with edu.regions.bar0.map() as bar:
        with edu.features.low_power(), pytest.raises(AccessError, match="in low power"):
            bar.read32(0)
        assert bar.read32(0) == 0x010000ED


# Opening, and the address space


def test_a_device_is_opened_once_at_a_time(model: FakeEdu) -> None:
    space = FakeIommu(devices=[model])
    dma = Dma(space)
    with open_device(model.address, iommu=dma):
        with pytest.raises(KernelError) as caught:
            open_device(model.address, iommu=dma)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(DeviceNotFoundError):
            open_device("0000:00:11.0", iommu=dma)
    assert space.closed


def test_the_next_who_opens_it_is_not_disturbed_by_the_last(model: FakeEdu) -> None:
    first = open_fake(model)
    first.file.revoke("for the test")
    with open_fake(model) as second:
        first.close()
        second.bus_master = True
        with second.irqs.msi.enable() as (vector,):
            model.interrupt()
            assert vector.wait(0) == 1


def test_a_silent_device_times_out(edu: Device) -> None:
    with edu.irqs.msi.enable() as (vector,), pytest.raises(IrqTimeoutError):
        vector.wait(0)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_map_can_be_made_to_fail(model: FakeEdu, first: int) -> None:
    space = FakeIommu(devices=[model])
    memory = mmap.mmap(-1, 8 * PAGE)
    with open_device(model.address, iommu=Dma(space)) as device, device.dma.map(memory, iova=0) as mapping:
        ranges = [(mapping.address + at * PAGE, IOVA + 2 * at * PAGE, PAGE) for at in range(3)]
        space.fail_at(first, errno.ENOMEM)
        with pytest.raises(DmaMapError) as caught:
            device.dma.map_ranges(ranges)
        assert (caught.value.errno, caught.value.index) == (errno.ENOMEM, first - 1)
        assert [one.iova for one in space.mappings] == [0]
        assert device.dma.mapped == (mapping,)
        device.dma.map_ranges(ranges).close()
    memory.close()


def test_a_device_reaches_across_mappings_and_faults_behind_them(model: FakeEdu) -> None:
    space = FakeIommu(devices=[model])
    with open_device(model.address, iommu=Dma(space)) as device:
        first = device.dma.alloc(PAGE, iova=IOVA)
        second = device.dma.alloc(PAGE, iova=IOVA + PAGE)
        space.write(IOVA + PAGE - 2, b"abcd")
        assert (first[-2:], second[:2]) == (b"ab", b"cd")
        assert space.read(IOVA + PAGE - 2, 4) == b"abcd"
        with pytest.raises(DmaFault) as caught:
            space.write(IOVA + 2 * PAGE - 2, b"abcd")
        assert (caught.value.iova, caught.value.verb) == (IOVA + 2 * PAGE, "write")
        assert second[-2:] == b"ab"
        assert space.faults == [caught.value]


def test_memory_that_has_gone_faults_too(model: FakeEdu) -> None:
    space = FakeIommu(devices=[model])
    with open_device(model.address, iommu=Dma(space)):
        memory = mmap.mmap(-1, PAGE)
        from vfiotool._shim import ffi

        address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
        space.map(address, IOVA, PAGE, BOTH)
        memory.close()
        with pytest.raises(DmaFault):
            space.read(IOVA, 4)


def test_without_an_iommu_there_is_nothing_to_fake() -> None:
    with pytest.raises(UnsupportedError):
        FakeIommu("noiommu")


# Mapping a file


class FileIommu(FakeIommu):
    """A backend that maps files by descriptor, and records the calls."""

    can_map_files = True

    def __init__(self, model: FakeEdu) -> None:
        super().__init__(devices=[model])
        self.mapped_files: list[tuple[int, int, int, DmaMapFlags]] = []

    def map_file(self, fd: int, start: int, iova: int, size: int, access: DmaMapFlags) -> None:
        self.mapped_files.append((fd, start, size, access))

    def unmap(self, iova: int, size: int) -> int:
        return size


def test_a_file_is_mapped_by_any_backend_that_can(model: FakeEdu) -> None:
    space = FileIommu(model)
    with (
        open_device(model.address, iommu=Dma(space)) as device,
        device.dma.map_file(7, 2 * PAGE, offset=PAGE, write=False) as mapping,
    ):
        assert (mapping.address, mapping.size) == (0, 2 * PAGE)
    assert space.mapped_files == [(7, PAGE, 2 * PAGE, DmaMapFlags.READ)]


def test_a_backend_that_cannot_map_files_says_so(model: FakeEdu) -> None:
    with FakeIommu(devices=[model]) as space:
        assert not space.can_map_files
        with pytest.raises(UnsupportedError, match="cannot map a file for DMA") as caught:
            space.map_file(7, 0, IOVA, PAGE, BOTH)
    assert "6.14" in caught.value.hint
