"""The driver of edu in every mode, on the model and on QEMU's: by polling, MSI and INTx."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from tests.support.address_spaces import (
    EDU_MASK,
    MODES,
    OFFERED,
    PAGE,
    Space,
    kernel_params,
    open_fds,
    opened_space,
    params,
    status,
)
from vfiotool.drivers.edu import CAPACITY, Edu
from vfiotool.errors import DmaRangeError, UsageError
from vfiotool.vfio.device import Device
from vfiotool.vfio.irqs.irqs import Irq

UNMAPPED = 0x0123_4000
RNG = random.Random(7)  # noqa: S311 - the test must be repeatable


KINDS = ("looking", "msi", "intx")


def irq_of(device: Device, kind: str) -> Irq | None:
    irqs = {"looking": None, "msi": device.irqs.msi, "intx": device.irqs.intx}
    return irqs[kind]


def places() -> list[ParameterSet]:
    """Each mode with each way to wait; on kernels, which take time, all ways in a single mode."""
    every_way = [*((mode, True) for mode in MODES), (OFFERED[-1], False)]
    return [
        pytest.param((*one.values, kind), id=f"{one.id}-{kind}", marks=one.marks)
        for one in params(*MODES)
        for kind in KINDS
        if kind == "msi" or one.values[0] in every_way
    ]


@pytest.fixture(params=places())
def edu(request: pytest.FixtureRequest) -> Iterator[Edu]:
    (mode, is_fake), kind = request.param
    if not is_fake:
        request.getfixturevalue("vfio_devices")
    before = open_fds(), status("VmLck"), status("VmPin")
    space = Space(mode, fake=is_fake)
    with Edu(space.device, irq=irq_of(space.device, kind)) as started:
        yield started
    space.close()
    assert (open_fds(), status("VmLck"), status("VmPin")) == before


@pytest.fixture(params=kernel_params(OFFERED[-1]))
def real_space(request: pytest.FixtureRequest) -> Iterator[Space]:
    """QEMU's edu, which takes real time."""
    yield from opened_space(request)


# Computations


def test_edu_identifies_itself(edu: Edu) -> None:
    assert edu.version == (1, 0)
    with edu.device.regions.bar0.map() as bar0:
        assert bar0.read32(0) == 0x010000ED


@pytest.mark.parametrize("number", [0, 1, 0x1234_5678, 0xFFFF_FFFF])
def test_edu_inverts(edu: Edu, number: int) -> None:
    assert edu.invert(number) == number ^ 0xFFFF_FFFF


def test_edu_computes_factorials(edu: Edu) -> None:
    for number in (0, 1, 2, 12, 13, 20, 33, 34, 1000):
        assert edu.factorial(number) == math.factorial(number) % (1 << 32)


# Copies


def test_bytes_go_to_the_device_and_come_back(edu: Edu) -> None:
    data = RNG.randbytes(CAPACITY)
    edu.copy_to_device(0, data)
    edu.copy_to_device(1000, b"in the middle")
    wanted = data[:1000] + b"in the middle" + data[1013:]
    assert edu.copy_from_device(0, CAPACITY) == wanted
    assert edu.copy_from_device(CAPACITY - 1, 1) == wanted[-1:]


def test_edu_copies_between_mapped_buffers(edu: Edu) -> None:
    dma, data = edu.device.dma, RNG.randbytes(CAPACITY)
    with dma.alloc(PAGE, iova_max=EDU_MASK) as source, dma.alloc(2 * PAGE, iova_max=EDU_MASK) as target:
        source[1:] = data
        edu.fetch(source.iova + 1, 0, CAPACITY)
        edu.store(target.iova + 5, 0, CAPACITY)
        assert target[:] == bytes(5) + data + bytes(2 * PAGE - 5 - CAPACITY)


@pytest.mark.parametrize(("offset", "size"), [(0, CAPACITY + 1), (CAPACITY, 1), (-1, 2), (1, -1)])
def test_copies_beyond_edus_buffer_are_refused(edu: Edu, offset: int, size: int) -> None:
    with pytest.raises(DmaRangeError, match="exceed edu's buffer"):
        edu.copy_from_device(offset, size)
    if size > 0:
        with pytest.raises(DmaRangeError, match="exceed edu's buffer"):
            edu.copy_to_device(offset, bytes(size))


@pytest.mark.parametrize("iova", [-1, EDU_MASK, EDU_MASK + 1, 1 << 64])
def test_iovas_beyond_edus_mask_are_refused(edu: Edu, iova: int) -> None:
    for action in (edu.fetch, edu.store):
        with pytest.raises(DmaRangeError, match="does not reach"):
            action(iova, 0, 2)


@pytest.mark.full
def test_memory_that_is_not_mapped_is_neither_read_nor_written(space: Space) -> None:
    """The IOMMU reports the fault, the device does not. Only requested interrupts arrive."""
    device = space.device
    with device.irqs.msi.enable() as (vector,), Edu(device) as edu:
        data = RNG.randbytes(64)
        edu.copy_to_device(0, data)
        assert space.fault_of(lambda: edu.store(UNMAPPED, 0, 64)) == UNMAPPED
        assert space.fault_of(lambda: edu.fetch(UNMAPPED + PAGE, 0, 64)) == UNMAPPED + PAGE
        assert vector.read() == 0
        edu.copy_to_device(64, data)
        assert edu.copy_from_device(64, 64) == data


def test_a_read_only_mapping_is_not_written(space: Space) -> None:
    with Edu(space.device) as edu, space.dma.alloc(PAGE, iova_max=EDU_MASK, write=False) as buffer:
        buffer[:4] = b"mine"
        edu.copy_to_device(0, b"not!")
        assert space.fault_of(lambda: edu.store(buffer.iova, 0, 4)) == buffer.iova
        assert buffer[:4] == b"mine"


# Interrupts


def test_each_interrupt_comes_once(edu: Edu) -> None:
    if edu.irq is None:
        with pytest.raises(UsageError, match="no interrupt"):
            edu.interrupt()
        return
    assert [edu.interrupt(1 << turn % 32) for turn in range(200)] == [1] * 200
    assert edu.factorial(5) == 120
    edu.copy_to_device(0, b"ping")
    assert edu.interrupt() == 1, "the interrupts of the factorial and the copy were consumed"


def test_an_interrupt_needs_a_cause(space: Space) -> None:
    with Edu(space.device, irq=space.device.irqs.msi) as edu, pytest.raises(UsageError):
        edu.interrupt(0)


# Stops during operations


def test_stop_waits_for_a_copy_that_timed_out(real_space: Space) -> None:
    device = real_space.device
    with device.dma.alloc(PAGE, iova_max=EDU_MASK) as buffer, Edu(device) as edu:
        for turn, irq in enumerate((None, device.irqs.msi, device.irqs.intx)):
            buffer[:4] = turn.to_bytes(4, "little")
            edu.irq = irq
            edu.stop()
            edu.start()
            with pytest.raises(TimeoutError):
                edu.fetch(buffer.iova, 0, 4, timeout=0)
            edu.stop()
            buffer[:4] = b"late"
            edu.start()
            assert edu.copy_from_device(0, 4) == turn.to_bytes(4, "little")


@pytest.mark.parametrize("kind", ["msi", "intx"])
def test_a_late_interrupt_does_not_end_the_next_call(real_space: Space, kind: str) -> None:
    with Edu(real_space.device, irq=irq_of(real_space.device, kind)) as edu:
        edu.copy_to_device(0, b"ping")
        with pytest.raises(TimeoutError):
            edu.fetch(0, 8, 4, timeout=0)
        with pytest.raises(TimeoutError):
            edu.factorial(0x4000_0000, timeout=0)
        edu.registers.dma_command.wait_until(start=0, timeout=30)
        edu.registers.status.wait_until(computing=0, timeout=30)
        edu.registers.irq_status.wait_for(lambda causes: causes == 0x101, timeout=30)
        assert edu.copy_from_device(0, 4) == b"ping"
        assert [edu.interrupt() for _ in range(10)] == [1] * 10


def test_a_factorial_that_timed_out_does_not_outlast_the_next_start(real_space: Space) -> None:
    with Edu(real_space.device, irq=real_space.device.irqs.msi) as edu:
        with pytest.raises(TimeoutError):
            edu.factorial(0x4000_0000, timeout=0)
        edu.stop()
        edu.start()
        assert edu.factorial(6) == 720
        assert edu.interrupt() == 1
