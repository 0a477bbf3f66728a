"""Opening a device: the kernel interface that is used, and errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

import vfiotool
from tests.support.group_device import GroupDevice
from vfiotool.errors import DeviceNotFoundError, GroupNotViableError, KernelError, UsageError
from vfiotool.vfio import IommuMode

pytestmark = pytest.mark.needs_guest

EDU = "0000:00:10.0"
NVME = "0000:00:13.0"
PAIR = ("0000:03:01.0", "0000:03:02.0")
PAGE = 4096


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with vfiotool.bound(EDU, *PAIR[:1], state_dir=str(tmp_path_factory.mktemp("state"))):
        yield


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.usefixtures("bound")
def test_auto_takes_the_best_that_the_kernel_offers() -> None:
    best = IommuMode.IOMMUFD if os.path.exists("/dev/iommu") else IommuMode.TYPE1V2
    assert vfiotool.offered_modes(EDU)[0] is best
    with vfiotool.open_device(EDU) as device:
        assert device.dma.iommu.mode is best


@pytest.mark.usefixtures("bound")
def test_a_name_forces_a_mode() -> None:
    for mode in vfiotool.offered_modes(EDU):
        with vfiotool.open_device(EDU, iommu=mode.value) as device:
            assert device.dma.iommu.mode is mode
            assert device.config.read(4) == bytes.fromhex("3412e811")


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(UsageError, match="no IOMMU mode 'type3'") as caught:
        vfiotool.open_device(EDU, iommu="type3")
    assert all(mode.value in caught.value.hint for mode in IommuMode)


def test_a_missing_device_is_an_error() -> None:
    with pytest.raises(DeviceNotFoundError):
        vfiotool.open_device("0000:7f:00.0")


@pytest.mark.usefixtures("bound")
def test_a_failed_open_leaves_nothing_open() -> None:
    before = descriptors()
    for address in (NVME, PAIR[0]):  # on a host driver, and in a group with a device on a host driver
        for mode in vfiotool.offered_modes(EDU):
            with pytest.raises((KernelError, GroupNotViableError)):
                vfiotool.open_device(address, iommu=mode.value)
    assert descriptors() == before


@pytest.mark.usefixtures("bound")
def test_a_device_that_is_open_is_in_use() -> None:
    with GroupDevice(EDU, int(os.path.basename(os.readlink(f"/sys/bus/pci/devices/{EDU}/iommu_group")))):
        for mode in vfiotool.offered_modes(EDU):
            with pytest.raises(KernelError) as caught:
                vfiotool.open_device(EDU, iommu=mode.value)
            assert caught.value.errno in (errno.EBUSY, errno.EINVAL)


@pytest.mark.usefixtures("bound")
def test_no_iova_is_chosen_in_a_bar() -> None:
    with open(f"/sys/bus/pci/devices/{EDU}/config", "rb") as config:
        bar = int.from_bytes(config.read(0x14)[0x10:], "little") & ~0xF
    for mode in vfiotool.offered_modes(EDU):
        with vfiotool.open_device(EDU, iommu=mode.value) as device:
            with device.dma.alloc(PAGE, iova_max=bar + PAGE - 1) as buffer:
                assert buffer.iova == bar - PAGE
            with device.dma.alloc(PAGE, iova=bar) as buffer:  # a caller may know better
                assert buffer.iova == bar
