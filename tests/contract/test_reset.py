"""Resets: their effects, the devices that they include, and ownership, on real kernels.

Registers that only software writes show a reset: CC of the NVMe controller (NVMe 1.4, 3.1.5),
and TDBAL of the network cards (Intel 82574 datasheet 10.2.6; the older card has it at the same place).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator

import pytest

import vfiotool
from tests.support.address_spaces import open_fds
from tests.support.binding_bench import BRIDGE, EDU, NVME, SIBLINGS
from tests.support.guest import group, kernel_complaints, path, write
from vfiotool.errors import KernelError, RefusedError, UnsupportedError
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.nodes import IOMMUFD
from vfiotool.vfio.reset import hot_reset, read_hot_reset_info
from vfiotool.vfio.uapi import DeviceIoctl, HotResetInfoFlags

pytestmark = pytest.mark.needs_guest

BELOW_SWITCH = "0000:07:00.0"  # a network card, alone on its bus
ITS_NEIGHBOUR = "0000:06:00.0"  # on another bus, but in the same group if the kernel finds no ACS
CC, QUEUE_ENTRIES = 0x14, 0x00460000  # of a controller that is not enabled
TDBAL = 0x3800
ICS, IMS, ICR, LSC = 0xC8, 0xD0, 0xC0, 1 << 2
SOON = 30.0

MODES = [
    "type1v2",
    pytest.param(
        "iommufd", marks=pytest.mark.skipif(not os.path.exists(IOMMUFD), reason="a kernel without iommufd")
    ),
]
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module", autouse=True)
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The devices on vfio-pci for all of these tests; the kernel must log no complaint."""
    before = kernel_complaints()
    addresses = (EDU, NVME, BELOW_SWITCH, ITS_NEIGHBOUR, *SIBLINGS)
    with vfiotool.bound(*addresses, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield
    assert kernel_complaints() == before


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@contextlib.contextmanager
def opened(address: str, mode: str) -> Iterator[tuple[Device, Mmio]]:
    """A device and its registers."""
    with open_device(address, iommu=mode) as device, device.regions.bar0.map() as registers:
        yield device, registers


# Of a function


@modes
def test_a_function_reset_clears_registers(mode: str) -> None:
    with opened(NVME, mode) as (nvme, registers):
        at = nvme.regions.config.info.offset
        config = nvme.file.pread(64, at)
        registers.write32(CC, QUEUE_ENTRIES)
        assert registers.read32(CC) == QUEUE_ENTRIES
        nvme.reset()
        assert registers.read32(CC) == 0
        assert nvme.file.pread(64, at) == config


@modes
@pytest.mark.parametrize("mastering", [False, True])
def test_a_reset_keeps_bus_mastering(mode: str, mastering: bool) -> None:
    """The kernel saves configuration space before a reset, and restores it."""
    for address, reset in ((NVME, Device.reset), (BELOW_SWITCH, Device.hot_reset)):
        with open_device(address, iommu=mode) as device:
            device.bus_master = mastering
            reset(device)
            assert device.bus_master is mastering


def test_edu_has_no_reset(opened_edu: Device) -> None:
    with pytest.raises(UnsupportedError, match="no function reset"):
        opened_edu.reset()
    with pytest.raises(KernelError) as caught:
        opened_edu.file.ioctl(DeviceIoctl.VFIO_DEVICE_RESET, bytearray())
    assert caught.value.errno == errno.EINVAL


@pytest.fixture
def opened_edu() -> Iterator[Device]:
    with open_device(EDU) as edu:
        yield edu


# Of a bus


@modes
def test_a_hot_reset_resets_the_devices_of_the_bus(mode: str) -> None:
    on_bus = {name for name in os.listdir(path(BRIDGE)) if name.startswith("0000:03:")}
    assert on_bus == set(SIBLINGS)
    with opened(SIBLINGS[0], mode) as (card, _):
        info = read_hot_reset_info(card.file)
        assert sorted(device.address for device in info.devices) == sorted(SIBLINGS)
        if mode == "iommufd":
            assert HotResetInfoFlags.DEV_ID in info.flags
            assert all(device.owned for device in info.devices)
        else:
            assert info.flags == HotResetInfoFlags(0)
            assert {device.group for device in info.devices} == {group(SIBLINGS[0])}


def test_a_device_on_the_root_bus_has_no_hot_reset(opened_edu: Device) -> None:
    for use in (read_hot_reset_info, hot_reset):
        with pytest.raises(UnsupportedError, match="no bridge above it"):
            use(opened_edu.file)


@modes
def test_siblings_are_reset_together(mode: str) -> None:
    with opened(SIBLINGS[0], mode) as (first, first_registers), contextlib.ExitStack() as stack:
        second = stack.enter_context(open_device(SIBLINGS[1], iommu=first.dma))
        registers = stack.enter_context(second.regions.bar0.map())
        for one in (first_registers, registers):
            one.write32(TDBAL, 0x12340)
            assert one.read32(TDBAL) == 0x12340
        first.hot_reset()
        assert [one.read32(TDBAL) for one in (first_registers, registers)] == [0, 0]


@modes
def test_interrupts_stay_enabled_after_a_hot_reset(mode: str) -> None:
    with opened(BELOW_SWITCH, mode) as (card, registers), card.irqs.msi.enable() as (vector,):
        card.bus_master = True
        for _ in range(2):
            registers.write32(IMS, LSC)
            registers.write32(ICS, LSC)
            assert vector.wait(SOON) == 1
            assert registers.read32(ICR) & LSC
            card.hot_reset()
            assert vector.read() == 0, "a stray interrupt"


def test_devices_of_groups_that_are_not_passed_are_named() -> None:
    with opened(SIBLINGS[0], "type1v2") as (card, registers):
        registers.write32(TDBAL, 0x12340)
        with pytest.raises(RefusedError) as caught:
            hot_reset(card.file)
        assert sorted(caught.value.reasons) == [f"{one} of group {group(one)}" for one in SIBLINGS]
        assert registers.read32(TDBAL) == 0x12340


def test_the_kernel_refuses_wrong_groups_as_well() -> None:
    """The kernel refuses the cases that vfiotool checks before."""
    with opened(SIBLINGS[0], "type1v2") as (card, _), open_device(EDU, iommu="type1v2") as edu:
        (foreign,) = edu.dma.iommu.groups
        assert raw_hot_reset(card) == errno.EINVAL
        assert raw_hot_reset(card, foreign.fileno()) == errno.EINVAL
        with pytest.raises(RefusedError):
            hot_reset(card.file, [foreign])
        assert raw_hot_reset(card, *(one.fileno() for one in card.dma.iommu.groups)) == 0


def raw_hot_reset(device: Device, *fds: int) -> int:
    """Return the kernel's errno, 0 for none."""
    question = struct.pack(f"=3I{len(fds)}i", 12 + 4 * len(fds), 0, len(fds), *fds)
    try:
        device.file.ioctl(DeviceIoctl.VFIO_DEVICE_PCI_HOT_RESET, bytearray(question))
    except KernelError as error:
        return error.errno or 0
    return 0


@pytest.fixture
def lonely() -> Iterator[str]:
    """The first sibling; the other has no driver."""
    write(path(SIBLINGS[1], "driver/unbind"), SIBLINGS[1])
    yield SIBLINGS[0]
    write("/sys/bus/pci/drivers/vfio-pci/bind", SIBLINGS[1])


@pytest.mark.full
def test_a_sibling_without_a_driver_is_not_reset(lonely: str) -> None:
    with (
        opened(lonely, "type1v2") as (card, _),
        pytest.raises(KernelError, match="not on vfio-pci") as caught,
    ):
        card.hot_reset()
    assert (caught.value.operation, caught.value.errno) == ("VFIO_DEVICE_PCI_HOT_RESET", errno.EINVAL)
