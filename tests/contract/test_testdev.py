"""The driver of pci-testdev on QEMU's device, compared with the tests in QEMU's source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vfiotool
from tests.support.address_spaces import MODES, kernel_params, open_fds
from tests.support.guest import TESTDEV
from vfiotool.drivers.testdev import AccessTest, PciTestdev
from vfiotool.errors import AccessError, UsageError
from vfiotool.vfio.device import open_device
from vfiotool.vfio.iommu import IommuMode

pytestmark = pytest.mark.needs_guest

MEMORY_AT, PORTS_AT = 2048, 128  # the targets of the tests in each BAR (hw/misc/pci-testdev.c)
ANY, MATCHED = 0xCE, 0xFA

TESTS = {
    0: [
        AccessTest(0, 0, "mmio-no-eventfd", 8, MEMORY_AT, MATCHED),
        AccessTest(0, 1, "mmio-wildcard-eventfd", 8, MEMORY_AT + 1, ANY),
        AccessTest(0, 2, "mmio-datamatch-eventfd", 8, MEMORY_AT + 2, MATCHED),
    ],
    1: [
        AccessTest(1, 0, "portio-no-eventfd", 8, PORTS_AT + 3, MATCHED),
        AccessTest(1, 1, "portio-wildcard-eventfd", 8, PORTS_AT + 4, ANY),
        AccessTest(1, 2, "portio-datamatch-eventfd", 8, PORTS_AT + 5, MATCHED),
    ],
}


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with vfiotool.bound(TESTDEV, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield


@pytest.fixture(params=kernel_params(*MODES))
def testdev(request: pytest.FixtureRequest, bound: None) -> Iterator[PciTestdev]:
    mode: IommuMode = request.param[0]
    before = open_fds()
    with open_device(TESTDEV, iommu=mode) as device, PciTestdev(device) as started:
        yield started
    assert open_fds() == before


@pytest.mark.parametrize("bar", TESTS)
def test_testdev_lists_its_tests(testdev: PciTestdev, bar: int) -> None:
    assert testdev.tests(bar) == TESTS[bar]


@pytest.mark.parametrize("bar", TESTS)
def test_testdev_counts_writes_that_reach_it(testdev: PciTestdev, bar: int) -> None:
    direct, wildcard, match = testdev.tests(bar)
    assert [testdev.run(direct, times) for times in (0, 1, 300, 2)] == [0, 1, 300, 2]
    assert testdev.run(wildcard, 5) == testdev.run(match, 5) == 0, "QEMU makes events of them"
    assert testdev.run(direct, 7) == 7


def test_a_write_of_other_data_is_not_counted(testdev: PciTestdev) -> None:
    (direct, *_) = testdev.tests(0)
    other = AccessTest(0, 0, direct.name, 8, direct.offset, direct.data ^ 1)
    assert testdev.run(other, 5) == 0


def test_a_test_beyond_its_bar_is_refused(testdev: PciTestdev) -> None:
    for bar in TESTS:
        with pytest.raises(AccessError, match=f"bar{bar}"):
            testdev.run(AccessTest(bar, 0, "", 32, 1 << 31, 0))
        assert testdev.run(TESTS[bar][0], 3) == 3


def test_there_are_no_tests_in_other_bars(testdev: PciTestdev) -> None:
    with pytest.raises(UsageError, match="no tests in bar2"):
        testdev.tests(2)


def test_testdev_needs_no_bus_mastering(testdev: PciTestdev) -> None:
    assert not testdev.device.bus_master
