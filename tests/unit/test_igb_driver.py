"""The driver of an 82576 on a model of the device."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.device_models import RECEIVE, TAIL, FakeIgb
from vfiotool.drivers.igb import Igb, IgbError, IgbTimeoutError
from vfiotool.errors import ClosedError, DmaRangeError, IrqError, UnsupportedError, UsageError
from vfiotool.testing import FakeEdu, open_fake
from vfiotool.vfio.device import Device

PAGE = 4096
SIZE = 512 << 10
UNMAPPED = 0x0123_4000
RNG = random.Random(11)  # noqa: S311 - the test must be repeatable


@pytest.fixture
def model() -> FakeIgb:
    return FakeIgb()


@pytest.fixture
def device(model: FakeIgb) -> Iterator[Device]:
    with open_fake(model) as opened:
        yield opened


@pytest.fixture(params=[0, 1, 10])
def igb(request: pytest.FixtureRequest, device: Device) -> Iterator[Igb]:
    with Igb(device, vectors=request.param) as started:
        yield started


@pytest.mark.parametrize(
    ("source", "destination", "size"),
    [(0, 0, 0), (0, 0, 1), (3, 5, 60), (0, 0, PAGE), (PAGE - 1, 7, 2), (17, 4000, 100_000), (0, 0, SIZE)],
)
def test_any_bytes_are_copied_from_anywhere_to_anywhere(
    igb: Igb, source: int, destination: int, size: int
) -> None:
    dma, data = igb.device.dma, RNG.randbytes(SIZE)
    with dma.alloc(SIZE) as one, dma.alloc(SIZE + PAGE) as other:
        one[:] = data
        igb.copy(one.iova + source, other.iova + destination, size)
        copied = data[source : source + size]
        assert other[:] == bytes(destination) + copied + bytes(SIZE + PAGE - destination - size)


def test_many_copies_fill_the_rings_and_go_round_them(igb: Igb, model: FakeIgb) -> None:
    dma, data = igb.device.dma, RNG.randbytes(64 * 1000)
    with dma.alloc(len(data)) as one, dma.alloc(len(data)) as other:
        one[:] = data
        order = RNG.sample(range(1000), 1000)
        igb.copy_many((one.iova + at * 64, other.iova + at * 64, 64) for at in order)
        assert other[:] == data
    assert model.sent >= 1000
    assert model.registers[RECEIVE + TAIL] == 2 * model.sent % 256


@pytest.mark.parametrize("copy", [(0, 0, -1), (-1, 0, 1), (0, (1 << 64) - 1, 2), (1 << 64, 0, 1)])
def test_a_copy_that_leaves_the_64_bits_is_refused_before_any_is_made(
    igb: Igb, model: FakeIgb, copy: tuple[int, int, int]
) -> None:
    with igb.device.dma.alloc(PAGE) as buffer, pytest.raises(DmaRangeError):
        igb.copy_many([(buffer.iova, buffer.iova, 64), copy])
    assert model.sent == 0


def test_a_frame_that_is_lost_ends_all_copies_until_a_restart(igb: Igb) -> None:
    with igb.device.dma.alloc(PAGE) as buffer:
        buffer[:4] = b"same"
        with pytest.raises(IgbTimeoutError):
            igb.copy(UNMAPPED, buffer.iova, 4, timeout=0)
        assert buffer[:4] == b"same"
        with pytest.raises(IgbError, match="was lost"):
            igb.copy(buffer.iova, buffer.iova + 64, 4)
        assert buffer[64:68] == bytes(4)
        igb.stop()
        igb.start()
        igb.copy(buffer.iova, buffer.iova + 64, 4)
        assert buffer[64:68] == b"same"


def test_a_changed_frame_is_an_error(igb: Igb, model: FakeIgb) -> None:
    receive = model._receive
    model._receive = lambda frame: receive(frame[:-1])  # type: ignore[method-assign]
    with igb.device.dma.alloc(PAGE) as buffer, pytest.raises(IgbError, match="received 63 bytes for 64"):
        igb.copy(buffer.iova, buffer.iova, 64)


def test_vectors_are_raised_at_once_and_count(device: Device) -> None:
    with Igb(device, vectors=10) as igb:
        for _ in range(50):
            assert igb.interrupt(range(10)) == [1] * 10
        assert igb.interrupt([7, 2, 7]) == [1, 1]
        with pytest.raises(UsageError, match="has 10 vectors"):
            igb.interrupt([10])


def test_only_enabled_vectors_can_be_raised(device: Device) -> None:
    with Igb(device) as igb, pytest.raises(UsageError, match="has 0 vectors"):
        igb.interrupt()
    with pytest.raises(IrqError, match="10 vectors"):
        Igb(device, vectors=11).start()
    assert device.dma.mapped == ()
    assert not device.bus_master


def test_a_phy_that_refuses_is_an_error_and_the_start_undone(device: Device, model: FakeIgb) -> None:
    model.refuses_phy = True
    igb = Igb(device, vectors=1)
    with pytest.raises(IgbError, match="PHY"):
        igb.start()
    assert not igb.started
    assert device.dma.mapped == ()
    assert not device.bus_master
    assert not device.irqs.msix.enabled
    with pytest.raises(ClosedError):
        igb.copy(0, 0, 1)


def test_dma_that_does_not_end_is_ended_by_a_reset_of_the_function(
    device: Device, model: FakeIgb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfiotool.drivers.igb.driver._SOON", 0.01)
    with Igb(device):
        model.keeps_master = True
        resets = model.resets
    assert model.resets == resets + 2
    assert not model.keeps_master


def test_another_device_is_left_alone() -> None:
    with open_fake(FakeEdu()) as device, pytest.raises(UnsupportedError, match="not an 82576"):
        Igb(device).start()
