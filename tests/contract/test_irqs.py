"""Interrupts: exact counts, every way to wait, and their end, on the fake edu and on real kernels.

edu raises its interrupt when a bit is written to 0x60, and lowers INTx when all are written to 0x64 (QEMU
docs/specs/edu). The NVMe controller is there for its 65 vectors of MSI-X, the network card because it
can be reset and still be made to raise an interrupt (ICS and IMS, Intel 82574 datasheet 10.2.4).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

import vfiotool
from tests.support.address_spaces import open_fds
from tests.support.binding_bench import E1000E, EDU, NVME
from tests.support.blocked_programs import Program, writing
from tests.support.guest import driver, kernel_complaints, path, write
from vfiotool.errors import ClosedError, IrqError, IrqTimeoutError, UnsupportedError
from vfiotool.testing.fake_edu import FakeEdu
from vfiotool.testing.fake_iommu import FakeIommu
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.iommu import IommuMode
from vfiotool.vfio.irqs.device_request import REASON
from vfiotool.vfio.irqs.irqs import Vector, Vectors
from vfiotool.vfio.mmio.mmio import Mmio
from vfiotool.vfio.nodes import CONTAINER
from vfiotool.vfio.uapi import IrqInfoFlags

on_a_kernel = pytest.mark.needs_guest
RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])

IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x24, 0x60, 0x64
ICS, IMS, ICR = 0xC8, 0xD0, 0xC0
LSC = 1 << 2  # link status change
SOON = 30.0


@pytest.fixture(scope="module")
def vfio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All three devices on vfio-pci for all of these tests; the kernel must log no complaint."""
    before = kernel_complaints()
    with vfiotool.bound(EDU, NVME, E1000E, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield
    assert kernel_complaints() == before


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test must leave no file open and no thread running."""
    before = open_fds(), threading.active_count()
    yield
    assert (open_fds(), threading.active_count()) == before


@pytest.fixture(params=["fake", pytest.param("kernel", marks=on_a_kernel)])
def edu(request: pytest.FixtureRequest, nothing_left: None) -> Iterator[Device]:
    """edu, open, with bus mastering on."""
    iommu: str | Dma = "auto"
    if request.param == "fake":
        iommu = Dma(FakeIommu(IommuMode.TYPE1V2, [FakeEdu(EDU)]))
    else:
        request.getfixturevalue("vfio")
    with open_device(EDU, iommu=iommu) as device:
        device.bus_master = True
        yield device


@pytest.fixture
def registers(edu: Device) -> Iterator[Mmio]:
    """edu's registers; no interrupt is raised before and after."""
    with edu.regions.bar0.map() as bar:
        bar.write32(IRQ_ACK, 0xFFFFFFFF)
        yield bar
        if not edu.closed:
            bar.write32(IRQ_ACK, 0xFFFFFFFF)


@pytest.fixture
def msi(edu: Device, registers: Mmio) -> Iterator[Vector]:
    """edu's MSI vector; all its counts must have been read at the end."""
    with edu.irqs.msi.enable() as (vector,):
        yield vector
        assert edu.closed or vector.closed or vector.read() == 0, "a stray interrupt"


@pytest.fixture
def intx(edu: Device, registers: Mmio) -> Iterator[Vector]:
    """edu's interrupt line."""
    with edu.irqs.intx.enable() as (vector,):
        yield vector
        assert vector.read() == 0, "a stray interrupt"


@pytest.fixture
def nvme(vfio: None, nothing_left: None) -> Iterator[Device]:
    with open_device(NVME) as device:
        yield device


def settled(registers: Mmio) -> None:
    """Wait for earlier writes to edu: it answers in order, and its messages arrive before the answer."""
    assert registers.read32(0) & 0xFF == 0xED


# MSI


def test_each_message_counts_once(registers: Mmio, msi: Vector) -> None:
    for number in range(200):
        registers.write32(IRQ_RAISE, 1 << number % 8)
        assert msi.wait(SOON) == 1
        registers.write32(IRQ_ACK, 0xFF)
    settled(registers)
    assert msi.read() == 0


def test_a_thousand_triggers_count_a_thousand(msi: Vector) -> None:
    for _ in range(1000):
        msi.trigger()
    assert msi.wait(SOON) == 1000
    assert msi.read() == 0


def test_counts_of_software_and_device_add_up(registers: Mmio, msi: Vector) -> None:
    for _ in range(3):
        msi.trigger()
    registers.write32(IRQ_RAISE, 1)
    total = 0
    while total < 4:
        total += msi.wait(SOON)
    assert total == 4


def test_no_message_without_bus_mastering(edu: Device, registers: Mmio, msi: Vector) -> None:
    edu.bus_master = False
    registers.write32(IRQ_RAISE, 1)
    settled(registers)
    with pytest.raises(IrqTimeoutError):
        msi.wait(0.1)
    edu.bus_master = True
    registers.write32(IRQ_ACK, 1)
    assert msi.read() == 0, "what was not sent does not come later"
    registers.write32(IRQ_RAISE, 2)
    assert msi.wait(SOON) == 1


def test_a_disabled_interrupt_counts_nothing(edu: Device, registers: Mmio) -> None:
    with edu.irqs.msi.enable() as (vector,):
        copy = os.dup(vector.fileno())
        registers.write32(IRQ_RAISE, 1)
        assert vector.wait(SOON) == 1
        registers.write32(IRQ_ACK, 1)
    registers.write32(IRQ_RAISE, 1)
    settled(registers)
    registers.write32(IRQ_ACK, 1)
    with os.fdopen(copy, "rb", buffering=0):
        assert os.eventfd_read(copy) == 1, "what close() itself wrote, to wake all who wait"
    with edu.irqs.msi.enable() as (vector,):
        assert vector.read() == 0
        registers.write32(IRQ_RAISE, 1)
        assert vector.wait(SOON) == 1
        registers.write32(IRQ_ACK, 1)


def test_the_kernel_does_not_mask_messages(msi: Vector) -> None:
    with pytest.raises(UnsupportedError):
        msi.mask()
    with pytest.raises(UnsupportedError):
        msi.unmask()


# INTx


def test_a_line_counts_once_until_it_is_unmasked(registers: Mmio, intx: Vector) -> None:
    registers.write32(IRQ_RAISE, 1)
    assert intx.wait(SOON) == 1
    registers.write32(IRQ_RAISE, 2)
    settled(registers)
    assert intx.read() == 0, "the kernel has masked it"
    intx.unmask()
    assert intx.wait(SOON) == 1, "edu raises it still"
    registers.write32(IRQ_ACK, 3)
    intx.unmask()
    settled(registers)
    assert intx.read() == 0
    registers.write32(IRQ_RAISE, 4)
    assert intx.wait(SOON) == 1
    registers.write32(IRQ_ACK, 4)
    intx.unmask()


def test_a_masked_line_is_signalled_after_unmask(registers: Mmio, intx: Vector) -> None:
    intx.mask()
    registers.write32(IRQ_RAISE, 1)
    settled(registers)
    assert intx.read() == 0
    intx.unmask()
    assert intx.wait(SOON) == 1
    registers.write32(IRQ_ACK, 1)
    intx.unmask()


def test_a_line_works_without_bus_mastering(edu: Device, registers: Mmio, intx: Vector) -> None:
    edu.bus_master = False
    registers.write32(IRQ_RAISE, 1)
    assert intx.wait(SOON) == 1
    registers.write32(IRQ_ACK, 1)
    intx.unmask()


def test_a_line_is_triggered_from_software_and_not_masked_by_that(intx: Vector) -> None:
    for _ in range(10):
        intx.trigger()
    assert intx.wait(SOON) == 10


def test_kinds_exclude_each_other(edu: Device, registers: Mmio, intx: Vector) -> None:
    with pytest.raises(IrqError, match=r"INTx of .* is enabled, so MSI cannot be"):
        edu.irqs.msi.enable()
    registers.write32(IRQ_RAISE, 1)
    assert intx.wait(SOON) == 1, "and it goes on"
    registers.write32(IRQ_ACK, 1)
    intx.unmask()


def test_missing_interrupts_are_errors(edu: Device) -> None:
    for irq in (edu.irqs.msix, edu.irqs.err):
        assert irq.count == 0
        with pytest.raises(UnsupportedError):
            irq.enable()
    with pytest.raises(IrqError):
        edu.irqs.msi.enable(2)


# Ways to wait


def test_select_poll_and_epoll(registers: Mmio, msi: Vector) -> None:
    poll, epoll = select.poll(), select.epoll()
    with contextlib.closing(epoll):
        poll.register(msi, select.POLLIN)
        epoll.register(msi, select.EPOLLIN)
        for bit in (1, 2):
            assert (select.select([msi], [], [], 0)[0], poll.poll(0), epoll.poll(0)) == ([], [], [])
            registers.write32(IRQ_RAISE, bit)
            assert select.select([msi], [], [], SOON)[0] == [msi]
            assert poll.poll(SOON * 1000) == [(msi.fileno(), select.POLLIN)]
            assert epoll.poll(SOON) == [(msi.fileno(), select.EPOLLIN)]
            assert msi.read() == 1
            registers.write32(IRQ_ACK, bit)


def test_tasks_of_asyncio(registers: Mmio, msi: Vector) -> None:
    async def serve() -> int:
        total = 0
        for _ in range(20):
            waiting = asyncio.create_task(msi.wait_async(SOON))
            await asyncio.sleep(0)
            registers.write32(IRQ_RAISE, 1)
            total += await waiting
            registers.write32(IRQ_ACK, 1)
        return total

    assert asyncio.run(serve()) == 20


def test_waiting_threads_are_woken_by_the_end(edu: Device, msi: Vector) -> None:
    ended: list[type] = []

    def wait() -> None:
        try:
            msi.wait(SOON)
        except ClosedError as error:
            ended.append(type(error))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    edu.close()
    for thread in threads:
        thread.join(SOON)
    assert ended == [ClosedError] * 3


def test_a_forked_child_has_no_vectors_and_consumes_none(edu: Device, registers: Mmio, msi: Vector) -> None:
    pid = os.fork()
    if not pid:
        try:
            msi.wait(0)
        except ClosedError:
            edu.close()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    registers.write32(IRQ_RAISE, 1)
    assert msi.wait(SOON) == 1
    registers.write32(IRQ_ACK, 1)


# MSI-X


@on_a_kernel
def test_each_of_many_vectors_counts_its_own(nvme: Device) -> None:
    with nvme.irqs.msix.enable(nvme.irqs.msix.count) as vectors:
        assert len(vectors) == 65
        for vector in vectors:
            for _ in range(vector.index):
                vector.trigger()
        assert [vector.read() for vector in vectors] == list(range(65))
        for _ in range(1000):
            vectors[64].trigger()
        assert [vector.read() for vector in vectors] == [0] * 64 + [1000]


@on_a_kernel
def test_enabled_vectors_are_listed_by_the_kernel(nvme: Device) -> None:
    """The kernel lists one interrupt for each enabled vector, and none afterwards."""
    with nvme.irqs.msix.enable(3):
        assert named_interrupts("vfio-msix", NVME) == 3
    assert named_interrupts("vfio-msix", NVME) == 0


def named_interrupts(kind: str, address: str) -> int:
    with open("/proc/interrupts", encoding="ascii") as lines:
        return sum(f"{kind}[" in line and f"({address})" in line for line in lines)


@on_a_kernel
def test_growth(nvme: Device) -> None:
    with nvme.irqs.msix.enable(2) as vectors:
        can_grow = IrqInfoFlags.NORESIZE not in nvme.irqs.msix.info.flags
        assert can_grow == (RELEASE >= (6, 5))
        vectors[1].trigger()
        if not can_grow:
            with pytest.raises(UnsupportedError, match="NORESIZE"):
                vectors.grow(4)
            assert vectors[1].read() == 1
            return
        grow(vectors)
        assert named_interrupts("vfio-msix", NVME) == 65
    assert named_interrupts("vfio-msix", NVME) == 0


def grow(vectors: Vectors) -> None:
    """Grow step by step to all vectors; the counts of the first vectors stay."""
    for count in (3, 10, 65):
        new = vectors.grow(count)
        assert len(vectors) == count
        new[-1].trigger()
        assert new[-1].wait(SOON) == 1
    assert [vector.read() for vector in vectors] == [0, 1] + [0] * 63


@on_a_kernel
def test_err_can_be_enabled_beside_other_interrupts(nvme: Device) -> None:
    with nvme.irqs.err.enable() as (error,), nvme.irqs.msix.enable(2) as vectors:
        error.trigger()
        vectors[0].trigger()
        assert (error.wait(SOON), vectors[0].wait(SOON), vectors[1].read()) == (1, 1, 0)


# After a reset


@on_a_kernel
def test_vectors_stay_enabled_after_a_reset(nvme: Device) -> None:
    with nvme.irqs.msix.enable(5) as vectors:
        fds = [vector.fileno() for vector in vectors]
        vectors[3].trigger()
        nvme.reset()
        assert [vector.fileno() for vector in vectors] == fds
        vectors[3].trigger()
        assert [vector.read() for vector in vectors] == [0, 0, 0, 2, 0]
        assert named_interrupts("vfio-msix", NVME) == 5


@on_a_kernel
@pytest.mark.parametrize("kind", ["msi", "intx"])
def test_a_device_raises_its_interrupt_again_after_a_reset(vfio: None, nothing_left: None, kind: str) -> None:
    with open_device(E1000E) as card, card.regions.bar0.map() as registers:
        irq = card.irqs.msi if kind == "msi" else card.irqs.intx
        with irq.enable() as (vector,):
            for _ in range(3):
                card.bus_master = True
                raise_once(registers, vector, is_line=kind == "intx")
                card.reset()
                assert vector.read() == 0, "a stray interrupt"


def raise_once(registers: Mmio, vector: Vector, *, is_line: bool) -> None:
    registers.write32(IMS, LSC)
    registers.write32(ICS, LSC)
    assert vector.wait(SOON) == 1
    assert registers.read32(ICR) & LSC, "which reading clears"
    if is_line:
        vector.unmask()
    assert vector.read() == 0


# REQ: the kernel asks for the device


@pytest.fixture
def unbinding(vfio: None) -> Iterator[list[Program]]:
    """Programs that unbind edu, which is on vfio-pci again after the test."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        assert program.wait(SOON) == 0
    if driver(EDU) is None:
        write("/sys/bus/pci/drivers/vfio-pci/bind", EDU)


@on_a_kernel
def test_an_unbind_wakes_a_waiting_driver_and_completes(nothing_left: None, unbinding: list[Program]) -> None:
    asked: list[tuple[Device, bool]] = []
    with open_device(EDU) as edu:
        edu.on_request = lambda device: asked.append((device, device.closed))
        with edu.regions.bar0.map() as registers, edu.irqs.msi.enable() as (vector,):
            unbinding.append(writing(path(EDU, "driver/unbind"), EDU))
            with pytest.raises(ClosedError) as caught:
                vector.wait(SOON)
            assert caught.value.hint == REASON
            begun = time.monotonic()
            assert unbinding[0].wait(SOON) == 0
            assert time.monotonic() - begun < 8, "the kernel asks again after ten seconds"
            with pytest.raises(ClosedError):
                registers.read32(0)
            with pytest.raises(ClosedError):
                edu.reset()
        assert asked == [(edu, False)]
        assert not [name for name in open_fds().values() if "vfio" in name and name != CONTAINER]


@on_a_kernel
def test_a_request_wakes_a_select_loop(nothing_left: None, unbinding: list[Program]) -> None:
    with open_device(EDU) as edu, edu.irqs.intx.enable() as (vector,):
        watched = vector.fileno()
        unbinding.append(writing(path(EDU, "driver/unbind"), EDU))
        assert select.select([watched], [], [], SOON)[0] == [watched]
        with pytest.raises(ClosedError):
            vector.read()


@on_a_kernel
def test_a_child_that_was_forked_does_not_hold_the_device(
    nothing_left: None, unbinding: list[Program]
) -> None:
    with open_device(EDU) as edu, edu.regions.bar0.map():
        ours, childs = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(childs)
            os.read(ours, 1)
            os._exit(0)
        os.close(ours)
        unbinding.append(writing(path(EDU, "driver/unbind"), EDU))
        assert unbinding[0].wait(SOON) == 0
        os.close(childs)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@on_a_kernel
def test_a_user_may_handle_the_request_itself(nothing_left: None, unbinding: list[Program]) -> None:
    with open_device(EDU, honour_requests=False) as edu, edu.irqs.req.enable() as (request,):
        unbinding.append(writing(path(EDU, "driver/unbind"), EDU))
        assert request.wait(SOON) >= 1
        assert not edu.closed
        assert edu.info().num_regions == 9, "it is still this process's"
        assert unbinding[0].poll() is None
    assert unbinding[0].wait(SOON) == 0


@on_a_kernel
def test_req_cannot_be_enabled_beside_the_handler(vfio: None, nothing_left: None) -> None:
    with open_device(EDU) as edu, pytest.raises(IrqError, match="enabled already"):
        edu.irqs.req.enable()
