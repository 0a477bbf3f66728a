"""The guarantees of ``Driver``, for each driver: on its model, and on the device in a lab guest."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from _pytest.mark import ParameterSet

import vfiotool
from tests.support.address_spaces import OFFERED, open_fds, status
from tests.support.blocked_programs import writing
from tests.support.device_models import FakeIgb, FakeTestdev
from tests.support.guest import EDU, IGB, NVME, TESTDEV, driver, kernel_complaints, path, write
from vfiotool.drivers.base import Driver
from vfiotool.drivers.edu import CAPACITY, Edu
from vfiotool.drivers.igb import Igb
from vfiotool.drivers.nvme import Nvme
from vfiotool.drivers.testdev import PciTestdev
from vfiotool.errors import ClosedError, IrqError, UnsupportedError, UsageError
from vfiotool.testing import FakeDevice, FakeEdu, open_fake
from vfiotool.vfio.device import Device, open_device

SOON = 60.0
RNG = random.Random(17)  # noqa: S311 - the test must be repeatable
MODE = OFFERED[-1]  # the kernel's newest
PRESENT = [address for address in (EDU, TESTDEV, NVME, IGB) if os.path.exists(path(address))]


def compute_and_copy(edu: Edu) -> None:
    """Use all functions of edu."""
    data = RNG.randbytes(CAPACITY)
    edu.copy_to_device(0, data)
    assert edu.factorial(12) == 479001600
    assert edu.copy_from_device(0, CAPACITY) == data


def count_writes(testdev: PciTestdev) -> None:
    """Make pci-testdev count writes."""
    assert testdev.run(testdev.tests(0)[0], 500) == 500


def copy_memory(igb: Igb) -> None:
    """Make igb copy, in both directions."""
    data = RNG.randbytes(100_000)
    with igb.device.dma.alloc(len(data)) as one, igb.device.dma.alloc(len(data)) as other:
        one[:] = data
        igb.copy(one.iova, other.iova, len(data))
        assert other[:] == data


def read_blocks(nvme: Nvme) -> None:
    """Make a controller read, with a queue's depth in flight."""
    with nvme.create_queue() as queue, nvme.device.dma.alloc(64 << 10) as buffer:
        blocks = buffer.size // queue.namespace.block_size
        queue.read_into(0, buffer)
        assert queue.read(0, blocks) == bytes(buffer)
        queue.read_many(range(blocks), buffer)


@dataclass(frozen=True)
class Subject:
    """A driver: how to make it for a device, and an action that keeps its device busy."""

    address: str
    make: Callable[[Device], Driver]
    work: Callable[[Any], None]
    model: Callable[[], FakeDevice] | None = None
    does_dma: bool = True
    takes: str = ""  # the interrupt that it enables


SUBJECTS = {
    "edu-looking": Subject(EDU, Edu, compute_and_copy, FakeEdu),
    "edu-msi": Subject(EDU, lambda dev: Edu(dev, irq=dev.irqs.msi), compute_and_copy, FakeEdu, takes="msi"),
    "edu-intx": Subject(
        EDU, lambda dev: Edu(dev, irq=dev.irqs.intx), compute_and_copy, FakeEdu, takes="intx"
    ),
    "testdev": Subject(TESTDEV, PciTestdev, count_writes, FakeTestdev, does_dma=False),
    "igb-looking": Subject(IGB, Igb, copy_memory, FakeIgb),
    "igb-msix": Subject(IGB, lambda dev: Igb(dev, vectors=3), copy_memory, FakeIgb, takes="msix"),
    "nvme": Subject(NVME, Nvme, read_blocks),
}


def places(*, models: bool = True, takes: bool = False) -> list[ParameterSet]:
    """Return all drivers, or those with an interrupt, on models and on the devices."""
    found = []
    for name, subject in SUBJECTS.items():
        if takes and not subject.takes:
            continue
        if models and subject.model is not None:
            found.append(pytest.param((subject, None), id=f"{name}-fake"))
        marks = [pytest.mark.needs_guest]
        if subject.address not in PRESENT:
            marks.append(pytest.mark.skip(reason="QEMU before 8 has no igb"))
        found.append(pytest.param((subject, MODE), id=f"{name}-{MODE.value}", marks=marks))
    return found


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = kernel_complaints()
    with vfiotool.bound(*PRESENT, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield
    assert kernel_complaints() == before


@dataclass(frozen=True)
class Bench:
    """A driver that is not started, of an open device."""

    subject: Subject
    device: Device
    driver: Driver

    def work(self) -> None:
        """Use the device, and check all results."""
        self.subject.work(self.driver)

    def trace(self) -> object:
        """Return the state that a driver must restore."""
        irqs = self.device.irqs
        enabled = [irq.enabled for irq in (irqs.intx, irqs.msi, irqs.msix)]
        return self.device.bus_master, self.device.dma.mapped, enabled, mapped_registers(), open_fds()


@pytest.fixture(params=places())
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A driver and its device; the test must leave nothing open or pinned."""
    subject, mode = request.param
    if mode is not None:
        request.getfixturevalue("bound")
    before = open_fds(), status("VmLck"), status("VmPin"), mapped_registers(), threading.active_count()
    device = open_fake(subject.model()) if mode is None else open_device(subject.address, iommu=mode)
    with device:
        made = subject.make(device)
        yield Bench(subject, device, made)
        made.stop()
    after = open_fds(), status("VmLck"), status("VmPin"), mapped_registers(), threading.active_count()
    assert after == before


def mapped_registers() -> int:
    """Return how many device mappings this process has."""
    with open("/proc/self/maps") as lines:
        return sum(name in line for line in lines for name in ("[vfio-device]", "/vfio", "memfd:fake"))


@contextlib.contextmanager
def worker(bench: Bench) -> Iterator[list[BaseException]]:
    """Run a thread until it fails, from before the block on; yield a list that gets its error."""
    begun, failures = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while True:
                bench.work()
                begun.set()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(SOON), failures
    yield failures
    thread.join(SOON)
    assert not thread.is_alive()


def test_nothing_is_touched_before_the_start(bench: Bench) -> None:
    before = bench.trace()
    bench.subject.make(bench.device)
    assert bench.trace() == before
    assert not bench.driver.started


def test_stop_undoes_start(bench: Bench) -> None:
    before = bench.trace()
    for _ in range(3):
        bench.driver.start()
        assert bench.driver.started
        assert bench.device.bus_master == bench.subject.does_dma
        bench.work()
        bench.driver.stop()
        assert not bench.driver.started
        assert bench.trace() == before


def test_stop_can_be_called_at_any_time_and_again(bench: Bench) -> None:
    bench.driver.stop()
    with bench.driver:
        bench.work()
        bench.driver.stop()
        bench.driver.stop()


def test_a_driver_is_not_started_twice(bench: Bench) -> None:
    with bench.driver:
        with pytest.raises(UsageError, match="started already"):
            bench.driver.start()
        bench.work()


def test_a_driver_that_is_not_started_refuses_calls(bench: Bench) -> None:
    with pytest.raises(ClosedError, match="not started"):
        bench.work()
    with bench.driver:
        pass
    with pytest.raises(ClosedError, match="not started"):
        bench.work()


@pytest.mark.parametrize("bench", places(takes=True), indirect=True)
def test_a_start_that_fails_is_undone(bench: Bench) -> None:
    rival = bench.device.irqs.intx if bench.subject.takes != "intx" else bench.device.irqs.msi
    with rival.enable():
        before = bench.trace()
        with pytest.raises(IrqError):
            bench.driver.start()
        assert bench.trace() == before
        assert not bench.driver.started
    with bench.driver:
        bench.work()


def test_a_driver_starts_after_a_reset(bench: Bench) -> None:
    with bench.driver:
        bench.work()
    with contextlib.suppress(UnsupportedError):  # edu and pci-testdev have none
        bench.device.reset()
    with bench.driver:
        bench.work()


@pytest.mark.parametrize("bench", places(models=False), indirect=True)
def test_start_takes_a_device_whatever_state_it_is_in(bench: Bench) -> None:
    """The previous driver was never stopped: its device was closed and opened again."""
    bench.driver.start()
    bench.work()
    mode = bench.device.dma.iommu.mode
    bench.device.close()
    with open_device(bench.subject.address, iommu=mode) as again, bench.subject.make(again) as driver_:
        bench.subject.work(driver_)


def test_stop_ends_the_calls_of_other_threads(bench: Bench) -> None:
    for _ in range(3):
        bench.driver.start()
        with worker(bench) as failures:
            bench.driver.stop()
        assert [type(error) for error in failures] == [ClosedError], failures
        assert bench.device.dma.mapped == ()
        assert not bench.device.bus_master
    with bench.driver:
        bench.work()


def test_a_revoked_device_ends_all_calls(bench: Bench) -> None:
    bench.driver.start()
    with worker(bench) as failures:
        bench.device.file.revoke("the test took it")
    assert [type(error) for error in failures] == [ClosedError], failures
    bench.driver.stop()
    with pytest.raises(ClosedError):
        bench.driver.start()
    assert not bench.driver.started


@pytest.mark.parametrize("bench", places(models=False), indirect=True)
def test_a_driver_stops_before_its_device_is_released(bench: Bench) -> None:
    address, states = bench.subject.address, list[tuple[bool, bool]]()
    stop = bench.driver.stop

    def noticed() -> None:
        states.append((bench.driver.started, bench.device.closed))
        stop()

    bench.driver.stop = noticed  # type: ignore[method-assign]
    bench.driver.start()
    with worker(bench) as failures:
        unbind = writing(path(address, "driver/unbind"), address)
        assert unbind.wait(SOON) == 0
    assert [type(error) for error in failures] == [ClosedError], failures
    assert states[0] == (True, False)
    assert not bench.driver.started
    assert bench.device.closed
    assert driver(address) is None
    write("/sys/bus/pci/drivers/vfio-pci/bind", address)
