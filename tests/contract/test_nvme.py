"""The NVMe driver on real kernels, with QEMU's controllers, compared with the kernel's driver."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import re
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

import vfiotool
from tests.support.address_spaces import MODES, kernel_params, next_fault, open_fds
from tests.support.blocked_programs import writing
from tests.support.guest import NVME, SUBSYSTEM_NVME, await_, driver, kernel_complaints, path, write
from vfiotool.drivers.nvme import (
    Completion,
    IoQueue,
    Nvme,
    NvmeError,
    NvmeStatusError,
    NvmeTimeoutError,
    commands,
)
from vfiotool.errors import ClosedError, UsageError
from vfiotool.vfio.device import Device, open_device
from vfiotool.vfio.dma.mapping import Buffer
from vfiotool.vfio.iommu import IommuMode

pytestmark = pytest.mark.needs_guest

BLOCK = 512
PAGE = 4096
PER_PAGE = PAGE // BLOCK
BLOCKS = (16 << 20) // BLOCK
SOON = 30.0
UNMAPPED = 1 << 40
_EVENT_REQUEST = 0x0C  # Asynchronous Event Request: completes at an event
_NAMESPACE = re.compile(r"(nvme\d+)(?:c\d+)?(n\d+)")
RNG = random.Random(4)  # noqa: S311 - the test must be repeatable


@dataclass(frozen=True)
class KernelView:
    """The kernel driver's attributes of a controller and its namespace."""

    serial: str
    model: str
    firmware: str
    controller_id: int
    size: int
    block_size: int

    @classmethod
    def of(cls, address: str) -> KernelView:
        block, controller = f"/sys/block/{disk_of(address)}", controller_of(address)
        return cls(
            text(f"{controller}/serial"),
            text(f"{controller}/model"),
            text(f"{controller}/firmware_rev"),
            int(text(f"{controller}/cntlid")),
            int(text(f"{block}/size")) * 512,
            int(text(f"{block}/queue/logical_block_size")),
        )


def text(file: str) -> str:
    with open(file, encoding="ascii") as attribute:
        return attribute.read().strip()


def controller_of(address: str) -> str:
    """Return the sysfs folder of the kernel driver for a controller."""
    return path(address, f"nvme/{os.listdir(path(address, 'nvme'))[0]}")


def disk_of(address: str) -> str:
    """Return the block device of a controller's only namespace, which appears some time after the driver."""

    def found() -> list[str]:
        with contextlib.suppress(FileNotFoundError, IndexError):
            # In a subsystem the namespace is nvme1c1n1 here, and nvme1n1 is its disk.
            parts = filter(_NAMESPACE.fullmatch, os.listdir(controller_of(address)))
            disks = [_NAMESPACE.sub(r"\1\2", part) for part in parts]
            return [disk for disk in disks if os.path.exists(f"/dev/{disk}")]
        return []

    await_(f"{address} has a disk", lambda: bool(found()))
    return found()[0]


@contextlib.contextmanager
def uncached(disk: str) -> Iterator[tuple[int, mmap.mmap]]:
    """A disk opened without the page cache, and a buffer of its size."""
    with contextlib.closing(mmap.mmap(-1, BLOCKS * BLOCK)) as memory:
        fd = os.open(f"/dev/{disk}", os.O_RDWR | os.O_DIRECT)
        try:
            yield fd, memory
        finally:
            os.close(fd)


def read_by_kernel(address: str) -> bytes:
    with uncached(disk_of(address)) as (fd, memory):
        assert os.preadv(fd, [memory], 0) == len(memory)
        return memory[:]


def write_by_kernel(address: str, data: bytes) -> None:
    with uncached(disk_of(address)) as (fd, memory):
        memory[:] = data
        assert os.pwritev(fd, [memory], 0) == len(memory)
        os.fsync(fd)


def shuffled() -> array[int]:
    """The first block of each page of the namespace, in random order."""
    lbas = array("Q", range(0, BLOCKS, PER_PAGE))
    RNG.shuffle(lbas)
    return lbas


def in_order(data: bytes, lbas: array[int]) -> bytes:
    """Return the pages of a namespace's content in another order."""
    return b"".join(data[lba * BLOCK : lba * BLOCK + PAGE] for lba in lbas)


Bound = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def bind(tmp_path_factory: pytest.TempPathFactory) -> Bound:
    @contextlib.contextmanager
    def bound() -> Iterator[None]:
        state_dir = str(tmp_path_factory.mktemp("state"))
        with vfiotool.bound(NVME, SUBSYSTEM_NVME, state_dir=state_dir):
            yield

    return bound


@pytest.fixture(scope="module")
def kernel_views(bind: Bound) -> Iterator[dict[str, KernelView]]:
    """The kernel's attributes of the controllers, which are then bound to vfio-pci."""
    before = kernel_complaints()
    views = {address: KernelView.of(address) for address in (NVME, SUBSYSTEM_NVME)}
    with bind():
        yield views
    assert kernel_complaints() == before


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = open_fds(), threading.active_count()
    yield
    assert (open_fds(), threading.active_count()) == before


@pytest.fixture
def device(kernel_views: dict[str, KernelView], nothing_left: None) -> Iterator[Device]:
    with open_device(NVME) as opened:
        yield opened


@pytest.fixture
def nvme(device: Device) -> Iterator[Nvme]:
    """A started controller; the test must leave nothing mapped, and bus mastering off."""
    with Nvme(device) as started:
        yield started
    if not device.closed:
        assert device.dma.mapped == ()
        assert not device.bus_master


@pytest.fixture
def queue(nvme: Nvme) -> Iterator[IoQueue]:
    with nvme.create_queue() as made:
        yield made


# With the kernel's driver


def test_data_goes_from_the_kernels_driver_to_this_one_and_back(bind: Bound) -> None:
    first, second = RNG.randbytes(BLOCKS * BLOCK), RNG.randbytes(BLOCKS * BLOCK)
    write_by_kernel(NVME, first)
    with bind(), open_device(NVME) as device, Nvme(device) as nvme, nvme.create_queue() as queue:
        buffer = device.dma.alloc(BLOCKS * BLOCK)
        lbas = shuffled()
        queue.read_many(lbas, buffer, blocks=PER_PAGE, depth=32)
        assert bytes(buffer) == in_order(first, lbas)
        lbas = shuffled()
        buffer[:] = in_order(second, lbas)
        queue.write_many(lbas, buffer, blocks=PER_PAGE, depth=32)
        queue.flush()
        buffer[:] = bytes(buffer.size)
        queue.read_into(0, buffer)
        assert bytes(buffer) == second
    assert driver(NVME) == "nvme"
    assert read_by_kernel(NVME) == second


@pytest.mark.parametrize("address", [NVME, SUBSYSTEM_NVME])
def test_identify_data_agree_with_the_kernels_driver(
    kernel_views: dict[str, KernelView], nothing_left: None, address: str
) -> None:
    with open_device(address) as device, Nvme(device) as nvme:
        (nsid,) = nvme.namespaces()
        namespace = nvme.namespace(nsid)
        assert nvme.info.vendor_id == device.config.vendor_id
        assert kernel_views[address] == KernelView(
            nvme.info.serial,
            nvme.info.model,
            nvme.info.firmware,
            nvme.info.controller_id,
            namespace.blocks * namespace.block_size,
            namespace.block_size,
        )
        with nvme.create_queue(nsid) as queue:
            data = RNG.randbytes(3 * BLOCK)
            queue.write(5, data)
            assert queue.read(5, 3) == data


def test_a_missing_namespace_is_an_error(nvme: Nvme) -> None:
    with pytest.raises(NvmeError, match="namespace 2 is not active"):
        nvme.namespace(2)
    with pytest.raises(NvmeStatusError, match="invalid namespace or format"):
        nvme.create_queue(0xFFFF_FFF0)


# Reads and writes


@pytest.mark.parametrize("kind", kernel_params(*MODES))
def test_each_mode_of_the_iommu_works(
    kernel_views: dict[str, KernelView], nothing_left: None, kind: tuple[IommuMode, bool]
) -> None:
    data = RNG.randbytes(600 * BLOCK)
    with (
        open_device(NVME, iommu=kind[0].value) as device,
        device.irqs.msix.enable(1) as (vector,),
        Nvme(device) as nvme,
        nvme.create_queue() as polled,
        nvme.create_queue(vector=vector) as interrupting,
    ):
        assert device.dma.iommu.mode is kind[0]
        polled.write(1000, data)
        assert interrupting.read(1000, 600) == data
        interrupting.write(1000, data[::-1])
        assert polled.read(1000, 600) == data[::-1]


@pytest.mark.parametrize("size", [1, 8, 9, 16, 17, 255, 1024, 1025])
def test_memory_need_not_be_aligned(device: Device, queue: IoQueue, size: int) -> None:
    """Each length has different PRPs: the first alone, a second, a list, several commands."""
    data = RNG.randbytes(size * BLOCK)
    with device.dma.arena((size + 64) * BLOCK) as arena:
        arena.alloc(64)
        buffer = arena.alloc(size * BLOCK)
        assert buffer.iova % PAGE
        buffer[:] = data
        queue.write_from(77, buffer)
        buffer[:] = bytes(buffer.size)
        queue.read_into(77, buffer)
        assert bytes(buffer) == data
    assert queue.read(77, size) == data
    assert queue.max_blocks == 1024, "QEMU's MDTS is 7"


def test_submitted_commands_complete_in_any_order_with_their_own_data(device: Device, queue: IoQueue) -> None:
    lbas = shuffled()[: queue.depth]
    data = RNG.randbytes(BLOCKS * BLOCK)
    queue.write(0, data)
    with device.dma.alloc(len(lbas) * PAGE) as buffer:
        cids = [
            queue.submit_read(lba, PER_PAGE, buffer.iova + index * PAGE) for index, lba in enumerate(lbas)
        ]
        with pytest.raises(UsageError, match="full"):
            queue.submit_read(0, 1, buffer.iova)
        done: list[Completion] = []
        while len(done) < len(cids):
            done += queue.poll(timeout=SOON)
        assert sorted(one.cid for one in done) == sorted(cids)
        assert {one.status for one in done} == {0}
        assert bytes(buffer) == in_order(data, lbas)


def test_queues_wrap_around(device: Device, nvme: Nvme) -> None:
    with nvme.create_queue(entries=3) as queue, device.dma.alloc(PAGE) as buffer:
        for round_ in range(20):
            queue.write(round_, bytes([round_]) * BLOCK)
        for round_ in range(20):
            assert queue.read(round_) == bytes([round_]) * BLOCK
        queue.read_many([7] * 500, buffer)
        assert buffer[:] == b"\7" * PAGE


def test_queues_are_created_and_deleted(device: Device, nvme: Nvme) -> None:
    with contextlib.ExitStack() as stack:
        queues = [stack.enter_context(nvme.create_queue(entries=2)) for _ in range(64)]
        assert [queue.number for queue in queues] == list(range(1, 65))
        with pytest.raises(NvmeError, match="no more than 64 queues"):
            nvme.create_queue()
        queues[9].close()
        mapped = device.dma.mapped
        with pytest.raises(UsageError, match="cannot have 1 entries"):
            nvme.create_queue(entries=1)
        assert device.dma.mapped == mapped
        with nvme.create_queue() as again:
            assert again.number == 10
            assert again.read(0) == queues[63].read(0)


# Interrupts


def test_one_command_gives_one_interrupt_on_its_own_vector(device: Device, nvme: Nvme) -> None:
    with (
        device.irqs.msix.enable(4) as vectors,
        nvme.create_queue(vector=vectors[2]) as queue,
        device.dma.alloc(PAGE) as buffer,
    ):
        assert vectors[0].read() == 3, "the admin queue has the first one: identify, and two for the queue"
        for _ in range(50):
            cid = queue.submit_read(0, 1, buffer.iova)
            assert vectors[2].wait(SOON) == 1
            assert queue.poll() == [(cid, 0, 0)]
        assert [vector.read() for vector in vectors] == [0, 0, 0, 0]


def test_at_depth_each_completion_has_its_interrupt_or_shares_one(device: Device, nvme: Nvme) -> None:
    lbas = shuffled()
    with (
        device.irqs.msix.enable(1) as (vector,),
        nvme.create_queue(vector=vector) as queue,
        device.dma.alloc(BLOCKS * BLOCK) as buffer,
    ):
        data = RNG.randbytes(BLOCKS * BLOCK)
        buffer[:] = in_order(data, lbas)
        queue.write_many(lbas, buffer, blocks=PER_PAGE, depth=32)
        buffer[:] = bytes(buffer.size)
        queue.read_many(lbas, buffer, blocks=PER_PAGE, depth=32)
        assert bytes(buffer) == in_order(data, lbas)


def test_a_queue_that_is_polled_raises_no_interrupt(device: Device, nvme: Nvme) -> None:
    with device.irqs.msix.enable(2) as vectors, nvme.create_queue() as queue:
        assert vectors[0].read() == 3, "the admin queue's"
        queue.write(0, bytes(100 * BLOCK))
        assert [vector.read() for vector in vectors] == [0, 0]


# Failures


def test_dma_to_unmapped_memory_is_a_fault_and_the_queue_stays_usable(queue: IoQueue) -> None:
    """QEMU's controller reports success although the IOMMU blocked its DMA."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        cid = queue.submit_read(0, 1, UNMAPPED)
        assert [done.cid for done in queue.poll(timeout=SOON)] == [cid]
        assert next_fault(log) == UNMAPPED
    finally:
        os.close(log)
    data = RNG.randbytes(BLOCK)
    queue.write(0, data)
    assert queue.read(0) == data


def test_a_command_that_does_not_end_is_a_timeout_and_others_complete(nvme: Nvme, queue: IoQueue) -> None:
    pair = nvme._admin.pair
    with pytest.raises(NvmeTimeoutError, match=r"event request did not complete within 0\.05 s"):
        pair.execute("event request", commands.command(_EVENT_REQUEST), 0.05)
    assert pair.in_flight == 1
    assert nvme.namespaces() == [1]
    queue.write(0, bytes(BLOCK))


def test_a_controller_that_cannot_reach_memory_fails_and_can_be_started_again(
    device: Device, nvme: Nvme, queue: IoQueue
) -> None:
    device.bus_master = False
    with pytest.raises(NvmeError, match=r"CSTS\.CFS"):
        queue.read(0)
    nvme.stop()
    nvme.start()
    with nvme.create_queue() as fresh:
        assert len(fresh.read(0)) == BLOCK


def test_a_stop_in_flight_ends_all_dma_and_a_start_makes_all_new(device: Device, nvme: Nvme) -> None:
    queue = nvme.create_queue()
    queue.write(0, b"\x55" * (2048 * BLOCK))
    with device.dma.alloc(1024 * BLOCK) as buffer, device.dma.alloc(PAGE) as late:
        for round_ in range(5):
            for _ in range(queue.depth):
                queue.submit_read(0, 1024, buffer.iova)
            nvme.stop()
            assert not device.bus_master
            assert bytes(buffer) == b"\x55" * buffer.size, f"not read in round {round_}"
            buffer[:] = bytes(buffer.size)
            with pytest.raises(ClosedError):
                queue.submit_read(0, 1, late.iova)
            with pytest.raises(ClosedError):
                queue.poll()
            nvme.start()
            queue = nvme.create_queue()
            assert queue.read(0) == b"\x55" * BLOCK
            assert bytes(buffer) == bytes(buffer.size), f"written after stop() in round {round_}"


def test_a_queue_can_be_closed_in_flight(device: Device, nvme: Nvme) -> None:
    with device.dma.alloc(1024 * BLOCK) as buffer:
        with nvme.create_queue() as queue:
            for _ in range(queue.depth):
                queue.submit_read(0, 1024, buffer.iova)
        buffer[:] = b"\xaa" * buffer.size
        with nvme.create_queue() as queue:
            queue.write(0, bytes(BLOCK))
            assert queue.read(0) == bytes(BLOCK)
        assert bytes(buffer) == b"\xaa" * buffer.size


def test_a_driver_is_started_once_and_stopped_any_number_of_times(device: Device) -> None:
    nvme = Nvme(device)
    assert device.dma.mapped == ()
    for _ in range(2):
        with nvme:
            with pytest.raises(UsageError, match="started already"):
                nvme.start()
            nvme.stop()
        nvme.stop()
        with pytest.raises(ClosedError, match="not started"):
            nvme.namespaces()


def test_a_failed_start_undoes_its_changes(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    nvme = Nvme(device)
    monkeypatch.setattr(commands, "set_number_of_queues", lambda count: commands.command(0x7F))
    with pytest.raises(NvmeStatusError, match="invalid command opcode"):
        nvme.start()
    assert not nvme.started
    assert device.dma.mapped == ()
    assert not device.bus_master
    monkeypatch.undo()
    with nvme, nvme.create_queue() as queue:
        assert len(queue.read(0)) == BLOCK


# Other threads, and the kernel


def run_until_it_ends(queue: IoQueue, device: Device, ended: list[BaseException]) -> threading.Thread:
    """Read at depth in a thread until an error; return once reads are in flight."""
    under_way = threading.Event()
    buffer = device.dma.alloc(32 * PAGE)

    def read() -> None:
        try:
            while True:
                queue.read_many(shuffled()[:256], buffer, blocks=PER_PAGE, depth=32)
                under_way.set()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert under_way.wait(SOON)
    return thread


def test_a_stop_ends_calls_of_another_thread(device: Device) -> None:
    ended: list[BaseException] = []
    nvme = Nvme(device)
    with nvme:
        thread = run_until_it_ends(nvme.create_queue(), device, ended)
    thread.join(SOON)
    assert [type(error) for error in ended] == [ClosedError]


def test_memory_allocated_during_a_stop_is_freed(
    device: Device, nvme: Nvme, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, alloc = nvme.create_queue(), device.dma.alloc

    def alloc_late(size: int) -> Buffer:
        buffer = alloc(size)
        nvme.stop()
        return buffer

    monkeypatch.setattr(device.dma, "alloc", alloc_late)
    with pytest.raises(ClosedError):
        queue.read(0)
    assert device.dma.mapped == ()


def test_a_requested_device_is_released_during_reads(device: Device) -> None:
    ended: list[BaseException] = []
    nvme = Nvme(device)
    nvme.start()
    thread = run_until_it_ends(nvme.create_queue(), device, ended)
    unbinding = writing(path(NVME, "driver/unbind"), NVME)
    try:
        assert unbinding.wait(SOON) == 0
        thread.join(SOON)
        assert [type(error) for error in ended] == [ClosedError]
        assert not nvme.started
        nvme.stop()
        with pytest.raises(ClosedError):
            nvme.start()
    finally:
        write("/sys/bus/pci/drivers/vfio-pci/bind", NVME)
