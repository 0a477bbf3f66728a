"""The driver of pci-testdev on a model, which may behave as no real device does."""

from __future__ import annotations

import pytest

from tests.support.device_models import FakeTestdev
from vfiotool.drivers.testdev import AccessTest, PciTestdev
from vfiotool.errors import AccessError, ClosedError, UnsupportedError
from vfiotool.testing import FakeEdu, open_fake

ENDLESS = [(1, 2048, 0xFA, b"again\0")] * 300


def test_the_list_of_tests_ends_with_an_invalid_width() -> None:
    model = FakeTestdev([(1, 8, 9, b"bytes\0"), (4, 12, 13, b"words\0"), (3, 0, 0, b"none\0"), ENDLESS[0]])
    with open_fake(model) as device, PciTestdev(device) as testdev:
        assert testdev.tests(0) == [
            AccessTest(0, 0, "bytes", 8, 8, 9),
            AccessTest(0, 1, "words", 32, 12, 13),
        ]
        assert model.current is None


def test_an_endless_list_of_tests_is_cut() -> None:
    with open_fake(FakeTestdev(ENDLESS)) as device, PciTestdev(device) as testdev:
        assert [test.number for test in testdev.tests(0)] == list(range(255))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\0", ""),
        (b"x" * 5000, "x" * 64),
        (b"\x1b[2J\xff\n\x00rest", "?[2J??"),
    ],
)
def test_a_name_is_bounded_and_printable(name: bytes, shown: str) -> None:
    with open_fake(FakeTestdev([(1, 8, 9, name)])) as device, PciTestdev(device) as testdev:
        assert [test.name for test in testdev.tests(0)] == [shown]


@pytest.mark.parametrize(
    ("width", "offset", "data"),
    [(1, 4096, 0), (1, 0xFFFF_FFFF, 0), (4, 4094, 0), (4, 2, 0), (1, 100, 256), (2, 100, 0xFFFF_FFFF)],
)
def test_a_test_outside_of_the_bar_is_refused(width: int, offset: int, data: int) -> None:
    model = FakeTestdev([(width, offset, data, b"astray\0")])
    with open_fake(model) as device, PciTestdev(device) as testdev:
        (test,) = testdev.tests(0)
        with pytest.raises(AccessError):
            testdev.run(test)


def test_writes_are_counted_by_width_and_data() -> None:
    with open_fake(FakeTestdev()) as device, PciTestdev(device) as testdev:
        narrow, wide = testdev.tests(0)
        assert (testdev.run(narrow, 3), testdev.run(wide, 4)) == (3, 4)
        assert testdev.run(AccessTest(0, 1, "", 8, wide.offset, 0x78), 4) == 0


def test_stop_ends_a_test_and_a_run() -> None:
    model = FakeTestdev()
    with open_fake(model) as device, PciTestdev(device) as testdev:
        (counted, _) = testdev.tests(0)
        write, done = model.write, []

        def stops_at_the_tenth(bar: int, offset: int, width: int, value: int) -> None:
            write(bar, offset, width, value)
            done.append(offset)
            if offset == counted.offset and done.count(offset) == 10:
                testdev.stop()

        model.write = stops_at_the_tenth  # type: ignore[method-assign]
        with pytest.raises(ClosedError):
            testdev.run(counted, 1000)
        assert done.count(counted.offset) == 10
        assert model.current is None


def test_another_device_is_left_alone() -> None:
    with open_fake(FakeEdu()) as device, pytest.raises(UnsupportedError, match="not pci-testdev"):
        PciTestdev(device).start()
